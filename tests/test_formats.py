"""The layouts for engines: names, shapes and config keys are those that the engines' loading code asks for, and naive
decoders, written from the engines' own decoding, give the tokens of ours from the exported weights."""

import json

import pytest
import torch
from common import everyday
from safetensors.torch import load_file
from test_export import TINY, make_run
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dlm.config.build import converted_denoiser
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.decoding.sub_block import SubBlock
from dlm.decoding.threshold import Threshold
from dlm.export import export
from dlm.format.fast_dllm import FastDLLM
from dlm.format.nemotron import Nemotron
from dlm.format.sdar import SDAR
from dlm.model.parent import load_parent, resolve
from dlm.types import generator

VOCABULARY, BLOCK, NEW = 151_680, 4, 14
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
RECIPES = {
    "sdar": ("qwen3", {"head_dim": 8, "rope_theta": 1e6}, 151_669, SDAR, ["attention=block", "token_shift=false"]),
    "fast_dllm": ("qwen2", {"rope_theta": 1e6}, 151_665, FastDLLM, ["attention=block", "token_shift=true"]),
    "nemotron": (
        "llama",
        {"vocab_size": 1100},
        1030,
        Nemotron,
        ["attention=block_token_causal", "auxiliary=ar", "token_shift=false"],
    ),
}
PROMPTS = [[5, 6, 7, 8, 9], [11, 12, 13, 14, 15, 16, 17, 18], [3, 9, 4]]


def tokenizer_with_mask(folder, mask_id: int) -> None:
    """Write the embedded tokenizer, with its mask token moved to another id."""
    AutoTokenizer.from_pretrained(resolve(TINY)).save_pretrained(folder)
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    (mask,) = [token for token in values["added_tokens"] if token["id"] == 2]
    mask["id"] = values["model"]["vocab"][mask["content"]] = mask_id
    file.write_text(json.dumps(values))


def a_run(folder, name: str, tied: bool = False, *overrides: str, **shape):
    """A finished run of a random model that is sure of some tokens, whose parent and recipe the format `name` takes."""
    family, more, mask_id, _, recipe = RECIPES[name]
    config = AutoConfig.for_model(family, **(SHAPE | more | {"tie_word_embeddings": tied} | shape))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in {model.lm_head.weight, model.model.embed_tokens.weight}:
            weight.copy_(torch.randn(weight.shape, generator=generator(1)) * 2)
        for key, weight in model.named_parameters():
            if key.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=generator(2)))

    class Untouched:
        tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))

    Untouched.model = model
    run = make_run(folder, Untouched, f"block_size={BLOCK}", "decoding=threshold", *recipe, *overrides)
    tokenizer_with_mask(run.model_folder, mask_id)
    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """`exported(format, tied)`: a run and its folder in a format, made once."""
    made = {}

    def get(name: str, tied: bool = False):
        if (name, tied) not in made:
            root = tmp_path_factory.mktemp(name)
            run = a_run(root / "run", name, tied)
            made[name, tied] = run, export(run, root / "out", 0.3, None, RECIPES[name][3]("float32"))
        return made[name, tied]

    return get


def engine_model(name: str, folder):
    """The exported tensors in plain layers of the parent's family, whose names the engine's are mapped to."""
    values = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": values.get("rope_theta") or values["rope_parameters"]["rope_theta"]}
    shape = {key: values[key] for key in SHAPE} | ({"head_dim": values["head_dim"]} if "head_dim" in values else {})
    config = AutoConfig.for_model(RECIPES[name][0], **shape, rope_parameters=rope, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    tensors = load_file(folder / "model.safetensors")
    renamed = {k.replace("encoder.", "model.").replace("diffusion_head", "lm_head"): t for k, t in tensors.items()}
    assert model.load_state_dict(renamed, strict=True)
    return model


@torch.no_grad()
def read(model, x: list[int], visible) -> torch.Tensor:
    """The logits [L, V] of all tokens, where row q sees column k if `visible(q, k)`: no cache, no shortcuts."""
    at = torch.arange(len(x))
    return model(torch.tensor([x]), attention_mask=visible(at[:, None], at)[None, None], use_cache=False).logits[0]


def as_sglang(model, prompt, new, size, threshold, mask_id):
    """SGLang's LowConfidence: blocks from position 0, all above the threshold or the most probable one."""
    x = list(prompt)
    while len(x) < len(prompt) + new:
        begin = len(x) // size * size
        block = x[begin:] + [mask_id] * (size - len(x) + begin)
        while mask_id in block:
            logits = read(model, x[:begin] + block, lambda q, k: k // size <= q // size)[begin:]
            confidence, token = logits.softmax(-1).max(-1)
            open_ = torch.tensor(block) == mask_id
            confidence[~open_] = -torch.inf
            chosen = confidence > threshold
            if not chosen.any():
                chosen[confidence.argmax()] = True
            block = torch.where(chosen, token, torch.tensor(block)).tolist()
        x = x[:begin] + block
    return x[len(prompt) : len(prompt) + new]


def as_fast_dllm(model, prompt, new, size, small, threshold, mask_id):
    """Fast-dLLM v2's generate: row i-1 scores token i; the first token of a block comes from the finished context; one
    small block after the other."""
    x = list(prompt)

    def causal_blocks(q, k):
        return k // size <= q // size

    while len(x) < len(prompt) + new:
        if len(x) % size == 0:
            x.append(int(read(model, x, causal_blocks)[-1].argmax()))
        begin = len(x) // size * size
        x += [mask_id] * (size - len(x) + begin)
        for first in range(begin, begin + size, small):
            while mask_id in x[first : first + small]:
                logits = read(model, x, causal_blocks)
                logits = torch.cat([logits[:1], logits[:-1]])[first : first + small]
                confidence, token = logits.softmax(-1).max(-1)
                part = torch.tensor(x[first : first + small])
                confidence[part != mask_id] = -torch.inf
                chosen = confidence > threshold
                chosen[confidence.argmax()] = True
                x[first : first + small] = torch.where(chosen & (part == mask_id), token, part).tolist()
    return x[len(prompt) : len(prompt) + new]


def as_vllm(model, prompt, new, size, threshold, mask_id, number=None):
    """vLLM's NemotronLabsDiffusion: a causal context, a canvas that begins behind the prompt and sees all of itself."""
    x = list(prompt)
    while len(x) < len(prompt) + new:
        begin, canvas = len(x), [mask_id] * size

        def visible(q, k, begin=begin):
            return (k <= q) | ((q >= begin) & (k >= begin))

        while mask_id in canvas:
            logits = read(model, x + canvas, visible)[begin:]
            logits[:, mask_id] = -torch.inf
            confidence, token = logits.log_softmax(-1).max(-1)
            open_ = torch.tensor(canvas) == mask_id
            confidence[~open_] = -torch.inf
            if number is None:
                chosen = confidence.exp() >= threshold
                chosen[confidence.argmax()] = True
            else:
                chosen = torch.zeros_like(open_).index_fill(
                    0, confidence.topk(min(number, int(open_.sum()))).indices, True
                )
            canvas = torch.where(chosen, token, torch.tensor(canvas)).tolist()
        x += canvas
    return x[len(prompt) : len(prompt) + new]


def ours(run, decoder, prompts):
    parent = load_parent(str(run.model_folder), check=False)
    made = decoder.generate(converted_denoiser(run.config, parent), Request(prompts, NEW))
    return [g.tokens for g in made], sum(g.nfe for g in made)


@pytest.mark.trains
@pytest.mark.parametrize("tied", everyday([True, False]))
def test_sdars_decoding_gives_our_tokens(tied, exported):
    run, folder = exported("sdar", tied)
    model = engine_model("sdar", folder)
    for threshold in (0.3, 1.0):
        expected, nfe = ours(run, Threshold(threshold), PROMPTS)
        assert [as_sglang(model, p, NEW, BLOCK, threshold, 151_669) for p in PROMPTS] == expected
        assert (nfe < NEW * len(PROMPTS)) == (threshold < 1)  # some tokens were committed together


@pytest.mark.trains
@pytest.mark.parametrize("tied", everyday([True, False]))
def test_fast_dllms_decoding_gives_our_tokens(tied, exported):
    run, folder = exported("fast_dllm", tied)
    model = engine_model("fast_dllm", folder)
    for threshold, small in ((0.3, 2), (0.3, 4), (1.0, 1)):
        expected, nfe = ours(run, SubBlock(threshold, small), PROMPTS)
        assert [as_fast_dllm(model, p, NEW, BLOCK, small, threshold, 151_665) for p in PROMPTS] == expected
        assert (nfe < NEW * len(PROMPTS)) == (threshold < 1)


@pytest.mark.trains
@pytest.mark.parametrize("tied", everyday([True, False]))
def test_vllms_decoding_of_nemotron_gives_our_tokens_where_its_blocks_are_ours(tied, exported):
    run, folder = exported("nemotron", tied)
    model, whole = engine_model("nemotron", folder), [p for p in PROMPTS if len(p) % BLOCK == 0]
    for threshold in (0.3, 1.0):
        expected, _ = ours(run, Threshold(threshold), whole)
        assert [as_vllm(model, p, NEW, BLOCK, threshold, 1030) for p in whole] == expected
    expected, _ = ours(run, Fixed(2), whole)
    assert [as_vllm(model, p, NEW, BLOCK, None, 1030, 2) for p in whole] == expected


@pytest.mark.trains
def test_vllms_decoding_of_nemotron_gives_our_tokens_of_every_prompt_where_our_blocks_begin_behind_it(tmp_path):
    run = a_run(tmp_path / "run", "nemotron", False, "attention.block_anchor=prompt")
    model = engine_model("nemotron", export(run, tmp_path / "out", 0.3, None, Nemotron("float32")))
    expected, _ = ours(run, Threshold(0.3), PROMPTS)
    assert [as_vllm(model, p, NEW, BLOCK, 0.3, 1030) for p in PROMPTS] == expected


@pytest.mark.parametrize("name", RECIPES)
def test_the_mask_token_is_never_the_most_probable_in_an_exported_head(name, exported):
    """Engines do not exclude it, and tied heads have trained its row as an input."""
    _, folder = exported(name, True)
    tensors, values = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    head, mask_id = tensors[RECIPES[name][3].head], values["mask_token_id"]
    states = torch.randn(200, SHAPE["hidden_size"], generator=generator(3)) * 3
    probability = (states @ head.T).softmax(-1)
    assert (probability.argmax(-1) != mask_id).all() and probability[:, mask_id].max() <= 1 / len(head)
