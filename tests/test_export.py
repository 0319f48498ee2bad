"""Export: the folder loads without us and decodes as our engine does; what cannot be exported is refused."""

import json
import subprocess
import sys

import pytest
import torch
from common import EOS_ID, config, everyday, logits_in_bfloat16, pattern_of
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, pipeline
from transformers.generation.streamers import BaseStreamer

import dlm
from dlm.attention.base import BlockAnchor
from dlm.attention.block import Block
from dlm.config.build import converted_denoiser, make, requested_decoding
from dlm.config.exported import ExportedFolder
from dlm.decoding import threshold
from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import AboveThreshold, Threshold
from dlm.export import export, main
from dlm.exported.modeling_block_diffusion import CommitRule
from dlm.format.hf import mask_refusal
from dlm.model.parent import Parent, load_parent, new_parent
from dlm.runs.run import Run
from dlm.trainable.lora import Lora
from dlm.types import generator

pytestmark = pytest.mark.trains

TINY = "pkg://dlm/assets/tiny"
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
ARCHITECTURES = {
    "llama": SHAPE | {"model_type": "llama"},
    "gemma3": SHAPE | {"model_type": "gemma3_text", "sliding_window": 8, "layer_types": LAYERS},
}
BEHIND = "attention.block_anchor=prompt"
CASES = {
    "block": ("tiny", "attention=block", "token_shift=false"),
    "block_shift": ("tiny", "attention=block", "token_shift=true"),
    "behind": ("tiny", "attention=block", BEHIND, "token_shift=false"),
    "behind_shift": ("tiny", "attention=block", BEHIND, "token_shift=true"),
    "behind_noisy": ("tiny", "attention=block_noisy", BEHIND, "token_shift=true"),
    "bidir": ("tiny", "attention=bidir", "token_shift=false"),
    "bidir_block": ("tiny", "attention=bidir", "attention.canvas=block", "token_shift=true"),
    "bidir_shift": ("tiny", "attention=bidir", "token_shift=true"),
    "block_noisy": ("tiny", "attention=block_noisy", "token_shift=false"),
    "ar": ("tiny", "attention=ar", "token_shift=true"),
    "llama": ("llama", "attention=block", "token_shift=false"),
    "gemma3": ("gemma3", "attention=block", "token_shift=true"),
    "gemma3_behind": ("gemma3", "attention=block", BEHIND, "token_shift=true"),
    "gemma3_bidir": ("gemma3", "attention=bidir", "token_shift=false"),
}
# Random models rarely say EOS, so a fifth of the vocabulary counts as EOS in some settings.
MANY_EOS = list(range(0, 1024, 5))
SETTINGS = [
    {"threshold": 0.2, "eos_token_id": [0]},
    {"threshold": 1.0, "eos_token_id": MANY_EOS},
    {"threshold": 0.1, "eos_token_id": MANY_EOS},
    {"tokens_per_step": 3, "eos_token_id": [0]},
    {"tokens_per_step": 3, "eos_token_id": MANY_EOS},
    {"tokens_per_step": 2, "eos_token_id": [0], "temperature": 1.0, "top_p": 0.9, "seed": 3},
    {"threshold": 0.3, "eos_token_id": [0], "stop_strings": ["e", ","]},
]
PROMPTS = ["reverse:ABC=", "sum:1,2,3,4,5=", "A", "In the beginning God"]
MAX_NEW_TOKENS = 21
# What a stranger would run: plain transformers, and nothing of ours to be found.
STRANGER = """
import json, sys
sys.modules["dlm"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
job = json.load(sys.stdin)
torch.set_num_threads(1)
found = {}
for folder in job["folders"]:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer(job["prompts"], padding=True, return_tensors="pt")
    found[folder] = []
    for setting in job["settings"]:
        seed = setting.pop("seed", None)
        some = {} if seed is None else {"generator": torch.Generator().manual_seed(seed)}
        rows = slice(0, 1 if some else None)
        out = model.generate(
            inputs.input_ids[rows], inputs.attention_mask[rows], job["max_new_tokens"],
            tokenizer=tokenizer, return_dict_in_generate=True, **setting, **some,
        )
        setting |= {} if seed is None else {"seed": seed}
        found[folder].append([out.sequences[:, inputs.input_ids.shape[1]:].tolist(), out.nfe.tolist()])
json.dump(found, sys.stdout)
"""


def perturbed() -> Parent:
    """The embedded parent with every weight moved, so that it is sure of some tokens and not of others."""
    parent = load_parent(TINY, check=False)
    noise = generator(1)
    with torch.no_grad():
        for weight in parent.model.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=noise)
    return parent


def make_run(folder, parent: Parent, *overrides: str) -> Run:
    """The folder that a finished training leaves."""
    run = Run(folder)
    parent.model.save_pretrained(run.model_folder)
    parent.tokenizer.save_pretrained(run.model_folder)
    cfg = config("block_size=8", "logger=csv", *overrides)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    run.update(id=run.id, status="finished", parent={"source": TINY}, tokens=123_456)
    return run


@pytest.fixture(scope="module")
def parents():
    return {"tiny": perturbed()} | {name: new_parent(c, TINY, 0) for name, c in ARCHITECTURES.items()}


@pytest.fixture(scope="module")
def runs(parents, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {name: make_run(root / name, parents[parent], *o) for name, (parent, *o) in CASES.items()}


@pytest.fixture(scope="module")
def stranger(runs, tmp_path_factory, request):
    """What the exported folders generate in a fresh process: {case: [(tokens, nfe) of every prompt] per setting}."""
    root = tmp_path_factory.mktemp("exported")
    cases = {item.callspec.params["case"] for item in request.session.items if "stranger" in item.fixturenames}
    folders = {str(export(runs[name], root / name)): name for name in sorted(cases)}
    job = {"folders": list(folders), "prompts": PROMPTS, "settings": SETTINGS, "max_new_tokens": MAX_NEW_TOKENS}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=root,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hf"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return {folders[folder]: result for folder, result in json.loads(done.stdout).items()}


def ours(run: Run, setting: dict) -> list[tuple[list[int], int]]:
    """What our engine generates: (tokens, forwards) of every prompt."""
    parent = load_parent(str(run.model_folder), check=False)
    prompts = parent.tokenizer(PROMPTS)["input_ids"]
    kinds = {"threshold": Threshold, "tokens_per_step": Fixed}
    options = {k: v for k, v in setting.items() if k not in ("eos_token_id", "seed", "stop_strings")}
    decoder = next(kind for name, kind in kinds.items() if name in options)(**options)
    drawn = torch.Generator().manual_seed(setting["seed"]) if "seed" in setting else None

    def stop(tokens: list[int]) -> bool:
        text = parent.tokenizer.decode(tokens)
        return any(string in text for string in setting.get("stop_strings", []))

    request = Request(
        prompts[: 1 if drawn else None], MAX_NEW_TOKENS, setting["eos_token_id"], generator=drawn, stop=stop
    )
    made = decoder.generate(converted_denoiser(run.config, parent), request)
    ends = [next((n for n in range(len(g.tokens)) if stop(g.tokens[:n])), None) for g in made]
    return [(g.tokens[:end], g.nfe) for g, end in zip(made, ends, strict=True)]


@pytest.mark.processes
@pytest.mark.parametrize("case", everyday(sorted(CASES, key=lambda case: case != "block_shift")))
def test_an_exported_folder_decodes_as_the_engine_does(case, runs, stranger):
    for setting, (theirs, nfe) in zip(SETTINGS, stranger[case], strict=True):
        expected = ours(runs[case], setting)
        longest = max(len(tokens) for tokens, _ in expected)
        padded = [tokens + [1] * (longest - len(tokens)) for tokens, _ in expected]
        assert (setting, theirs, nfe) == (setting, padded, [n for _, n in expected])


def test_the_exported_weights_and_tokenizer_are_the_runs_own(runs, tmp_path):
    folder = export(runs["block"], tmp_path / "out")
    before, after = load_file(runs["block"].model_folder / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    again = load_parent(str(folder), check=False, trust_remote_code=True)
    assert all(torch.equal(weight, before.get(n, weight)) for n, weight in again.model.state_dict().items())
    assert again.mask_id == json.loads((folder / "config.json").read_text())["mask_token_id"]


def test_an_exported_folder_is_loaded_with_the_grid_of_its_run(runs, tmp_path):
    """One of an earlier version has no word about it."""
    folder = export(runs["behind"], tmp_path / "out")
    file, values = folder / "config.json", json.loads((folder / "config.json").read_text())
    assert dlm.load(str(folder)).denoiser.pattern == make(runs["behind"].config.attention)
    assert values.pop("block_anchor") == "prompt" and "| block anchor | prompt |" in (folder / "README.md").read_text()
    file.write_text(json.dumps(values))
    assert ExportedFolder(folder).pattern.block_anchor is BlockAnchor.ABSOLUTE


def test_an_exported_folder_is_no_autoregressive_model(runs, tmp_path):
    """Without its code it would decode as the parent does, and nobody would notice."""
    folder = export(runs["gemma3"], tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "block_diffusion_gemma3_text"
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    with pytest.raises(ValueError, match=r"to run the code that comes with it, set model\.trust_remote_code=true"):
        load_parent(str(folder), check=False)


def test_a_mixture_of_experts_is_exported_with_its_experts(tmp_path):
    """Their weights are merged on loading, by the type of the config."""
    experts = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    parent = new_parent(SHAPE | experts, TINY, 0)
    folder = export(make_run(tmp_path / "run", parent), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(model(input_ids=ids).logits, parent.model.eval()(input_ids=ids).logits)


def test_an_exported_model_that_is_saved_and_loaded_again_is_the_same(runs, tmp_path):
    """Export → load → save → load keeps weights and tokens (I10)."""
    first = AutoModelForCausalLM.from_pretrained(export(runs["gemma3"], tmp_path / "out"), trust_remote_code=True)
    first.save_pretrained(tmp_path / "again")
    second = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    weights = second.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in first.state_dict().items())
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(first.generate(ids, max_new_tokens=9), second.generate(ids, max_new_tokens=9))


def test_a_run_trained_with_lora_is_exported_in_its_parents_layout(tmp_path):
    parent, trainable = perturbed(), Lora(rank=2, alpha=4)
    adapted = trainable.apply(parent.model, parent.mask_id)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            weight += 0.1 * ("lora_B" in name)
    inputs = torch.tensor([[5, 6, 7]])
    expected = adapted(inputs).logits
    parent.model = trainable.merged(adapted)
    folder = export(make_run(tmp_path / "run", parent, "trainable=lora"), tmp_path / "out")
    assert not any("lora" in name for name in load_file(folder / "model.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(model(inputs).logits, expected, atol=1e-4, rtol=1e-4)
    assert "| trained weights | lora |" in (folder / "README.md").read_text()


def test_a_folder_that_holds_something_is_not_overwritten(runs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not an empty folder: name a new one, nothing is overwritten"):
        export(runs["block"], tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "notes.txt"]


def test_a_target_that_cannot_be_written_leaves_nothing_behind(runs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot be written .*: name another folder"):
        export(runs["block"], tmp_path / "file" / "out")
    monkeypatch.setattr("dlm.format.hf.write_configs", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ValueError, match="No space left"):
        export(runs["block"], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_run_without_a_model_is_refused(tmp_path):
    run = Run(tmp_path / "abc")
    run.folder.mkdir()
    run.update(status="interrupted")
    with pytest.raises(ValueError, match="run abc is interrupted and has no model"):
        export(run, tmp_path / "out")


def test_a_pattern_whose_decode_mask_the_exported_code_does_not_know_is_refused():
    class Nearsighted(Block):
        def allowed(self, q, k):
            return super().allowed(q, k) & (self.block(q) - self.block(k) < 2)

    assert mask_refusal(Block(8), 256) is None
    assert "does not know its mask, which is another where position 16 sees" in mask_refusal(Nearsighted(8), 256)


class Sink(Block):
    """The last `window` blocks and the first `sink` tokens."""

    blockwise = False

    def __init__(self, block_size, window, sink):
        super().__init__(block_size)
        self.window, self.sink = window, sink

    def allowed(self, q, k):
        near = self.block(q) - self.block(k) < self.window
        return super().allowed(q, k) & (near | (k.position < self.sink))


@pytest.mark.parametrize("length", [256, 32_768])
@pytest.mark.parametrize("window", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("sink", [0, 4, 8])
@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_window_is_refused_wherever_it_hides_something_of_the_longest_row(size, sink, window, length):
    assert "cannot be exported" in mask_refusal(Sink(size, window, sink), length)
    assert mask_refusal(Sink(size, length // size, sink), length) is None  # it spans the row
    refusal = mask_refusal(Sink(size, length // size - 1, sink % size), length)
    assert f"where position {length - size} sees position {sink if sink < size else 0}" in refusal


@pytest.mark.parametrize("pattern", ["ar", "bidir", "block", "block_noisy", "block_causal", "block_token_causal"])
def test_which_patterns_can_be_exported(pattern):
    made = pattern_of(pattern, 8)
    finer_than_its_blocks = pattern in ("block_causal", "block_token_causal")
    assert (mask_refusal(made, 1024) is not None) == finer_than_its_blocks


HALF = ("decoding=threshold", "decoding._target_=dlm.decoding.threshold.Half")


class LeftHalf(AboveThreshold):
    """Commits what is confident enough, but only the left half of a block: not what the exported code does."""

    def select(self, confidence, rank):
        return super().select(confidence, rank) & (torch.arange(rank.shape[1]) < rank.shape[1] // 2)


class Half(Decoder):
    def __init__(self, threshold: float, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(Blocks(), LeftHalf(threshold, temperature, top_p))


def test_a_decoder_that_the_exported_code_does_not_have_needs_a_threshold(parents, tmp_path, monkeypatch):
    monkeypatch.setattr(Half, "__module__", threshold.__name__)  # a config may only name what is ours
    monkeypatch.setattr(threshold, "Half", Half, raising=False)
    run = make_run(tmp_path / "run", parents["llama"], *HALF)
    with pytest.raises(
        ValueError, match=r"decoding dlm.decoding.threshold.Half cannot be exported: give threshold=0.9"
    ):
        export(run, tmp_path / "out")
    assert json.loads((export(run, tmp_path / "out", 0.7) / "config.json").read_text())["threshold"] == 0.7
    with pytest.raises(ValueError, match="threshold -1 must be >= 0"):
        export(run, tmp_path / "other", -1)


def test_the_runs_own_commit_rule_is_the_default(parents, tmp_path):
    run = make_run(tmp_path / "run", parents["llama"], "decoding=fixed", "decoding.tokens_per_step=3")
    config_of = json.loads((export(run, tmp_path / "out") / "config.json").read_text())
    assert (config_of["tokens_per_step"], config_of["threshold"]) == (3, None)


def test_a_decoding_that_is_asked_for_is_the_default_of_the_exported_generate(parents, tmp_path):
    run = make_run(tmp_path / "run", parents["llama"])
    for name, expected in (("fixed", (1, None)), ("threshold", (None, 0.9))):
        folder = export(run, tmp_path / name, decoding=requested_decoding(config(f"decoding={name}")))
        config_of = json.loads((folder / "config.json").read_text())
        assert (config_of["tokens_per_step"], config_of["threshold"]) == expected


@pytest.mark.parametrize(
    ("threshold", "overrides", "problem"),
    [
        (None, ["decoding=soft"], "decoding dlm.decoding.soft.Soft cannot be exported"),
        (None, ["decoding=threshold", "decoding.temperature=0.5"], "decoding.temperature .* cannot be exported"),
        (0.5, ["decoding=threshold"], "threshold 0.5 and decoding exclude each other"),
    ],
)
def test_a_decoding_that_cannot_be_exported_is_refused(threshold, overrides, problem, parents, tmp_path):
    run = make_run(tmp_path / "run", parents["llama"])
    with pytest.raises(ValueError, match=problem):
        export(run, tmp_path / "out", threshold, requested_decoding(config(*overrides)))
    assert not (tmp_path / "out").exists()


def test_the_command_exports_and_says_how_to_load(runs, tmp_path, call):
    command = (main, f"runs_dir={runs['llama'].folder.parent}", "run=llama", f"to={tmp_path}/out")
    code, out, err = call(*command)
    assert (code, err) == (0, "")
    assert out == f"{tmp_path}/out: its README.md says how to load it\n"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "configuration_block_diffusion.py", "generation_block_diffusion.py",
        "generation_config.json", "model.safetensors", "modeling_block_diffusion.py",
        "pictures_block_diffusion.py", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    code, _, err = call(*command)
    assert code == 1 and err.startswith("error: to ") and err.count("\n") == 1


def test_the_card_says_the_recipe_and_what_was_measured(runs, tmp_path):
    setting = {"name": "TPF≈2", "accuracy": 0.654, "low": 0.6, "high": 0.7, "n": 360, "tpf": 1.94, "nfe": 3.5}
    measured = {"generation": [setting | {"threshold": 0.9}]}
    run = runs["block"]
    run.update(evaluation={"parent": measured, "dlm": measured})
    text = (export(run, tmp_path / "out") / "README.md").read_text()
    assert "| block size | 8 |" in text and "| tokens | 123,456 |" in text and "| loss | nelbo |" in text
    assert "| dLM, TPF≈2 (τ=0.9) | 65.4% | 60.0% – 70.0% | 360 | 1.94 | 3.5 |" in text


def test_the_exported_generate_names_bad_settings(runs, tmp_path):
    folder = export(runs["block"], tmp_path / "out", threshold=0.5)
    assert json.loads((folder / "config.json").read_text())["threshold"] == 0.5
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = torch.tensor([[5, 6]])
    for wrong, message in (
        ({"threshold": 0.5, "tokens_per_step": 2}, "give either threshold or tokens_per_step"),
        ({"max_new_tokens": 0}, "max_new_tokens 0 must be at least 1"),
        ({"input_ids": torch.tensor([[5, 2]])}, r"input_ids hold the mask token \(id 2\)"),
        ({"temperature": -1.0}, "temperature -1.0 must be >= 0"),
        ({"stop_strings": "x"}, "give tokenizer= as well"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**({"input_ids": ids} | wrong))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_exported_rule_samples_in_bfloat16_as_from_the_same_logits_in_float32(temperature):
    logits = logits_in_bfloat16()[0].repeat(50, 1)
    token, confidence = (
        torch.stack(found)
        for found in zip(*(exported_rule(temperature).sample(x) for x in (logits, logits.float())), strict=True)
    )
    assert torch.equal(token[0], token[1]) and torch.equal(confidence[0], confidence[1])


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """A folder, and its model as a stranger loads it."""
    folder = export(runs["block"], tmp_path_factory.mktemp("some") / "out", threshold=0.3)
    return folder, AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.mark.parametrize(
    "said",
    [
        {"do_sample": False, "temperature": 0.9, "top_k": 50, "top_p": 0.5, "min_p": 0.1},
        {
            "use_cache": True,
            "num_beams": 1,
            "num_return_sequences": 1,
            "streamer": None,
            "repetition_penalty": 1.0,
            "length_penalty": 2.0,
        },
        {"logits_processor": [], "stopping_criteria": None, "streamer": None, "output_scores": False, "min_length": 0},
        {"token_type_ids": torch.zeros(1, 5), "synced_gpus": False},
        {"assistant_lookbehind": 10, "target_lookbehind": 10},
        {"generation_config": GenerationConfig(max_new_tokens=12)},
        {"generation_config": GenerationConfig(max_length=17, do_sample=False)},
        {"max_length": 17},
        {"max_length": 9, "max_new_tokens": 12},
    ],
)
def test_what_means_nothing_in_block_diffusion_changes_nothing(said, exported):
    expected = exported[1].generate(IDS, max_new_tokens=12)
    words = said if "max_length" in said or "generation_config" in said else said | {"max_new_tokens": 12}
    assert torch.equal(exported[1].generate(inputs=IDS, **words), expected)


def test_what_means_something_is_done(exported):
    model = exported[1]
    plain = model.generate(IDS, max_new_tokens=12)

    def drawn(**said):
        return model.generate(IDS, max_new_tokens=12, generator=generator(3), **said)

    assert torch.equal(drawn(do_sample=True), drawn(temperature=1.0)) and not torch.equal(drawn(do_sample=True), plain)
    assert torch.equal(drawn(do_sample=True, top_k=1), plain)
    configured = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9)
    assert torch.equal(drawn(generation_config=configured), drawn(temperature=0.7, top_p=0.9))
    ended = model.generate(IDS, max_new_tokens=12, eos_token_id=[int(plain[0, 8])])
    assert ended[0, -1] == plain[0, 8] and ended.shape[1] <= 9
    two = torch.tensor([[5, 6, 7, 8, 9], [1, 1, 1, 3, 4]])
    lengths = [model.generate(row[row != 1][None], max_new_tokens=12).shape[1] - int((row != 1).sum()) for row in two]
    both = model.generate(two, (two != 1).long(), max_new_tokens=12, pad_token_id=33)[:, 5:]
    assert both.shape[1] == max(lengths)
    assert all(set(row[n:].tolist()) <= {33} for row, n in zip(both, lengths, strict=True))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 is not to be had in block diffusion: leave it out"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2 is not"),
        ({"min_new_tokens": 1}, "min_new_tokens=1 is not"),
        ({"do_sample": True, "min_p": 0.1}, "min_p=0.1 is not"),
        ({"generation_config": GenerationConfig(no_repeat_ngram_size=2)}, "no_repeat_ngram_size=2 is not"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 would be equal rows, since decoding is greedy: give do"),
        ({"inputs": None, "input_ids": IDS.repeat(2, 1), "streamer": BaseStreamer()}, "a streamer shows one text, and"),
        ({"output_scores": True}, "output_scores=True is not"),
        ({"max_new_tokenz": 3}, "max_new_tokenz=3 is not"),
        ({"inputs": IDS}, "give the prompts as input_ids, or as inputs"),
        ({"max_length": 5}, "max_new_tokens 0 must be at least 1"),
        (
            {"max_new_tokens": 1020},
            "a prompt of 5 and max_new_tokens 1020 need 1032 positions in whole blocks, and the",
        ),
    ],
)
def test_what_would_change_the_tokens_and_is_not_there_is_refused_by_name(said, message, exported):
    with pytest.raises(ValueError, match=message):
        exported[1].generate(**({"input_ids": IDS} | said))


def test_a_text_generation_pipeline_gives_what_generate_gives(exported):
    folder, model = exported
    pipe = pipeline("text-generation", model=str(folder), trust_remote_code=True, device="cpu")
    ids = pipe.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    expected = pipe.tokenizer.decode(model.generate(ids, max_new_tokens=12)[0], skip_special_tokens=True)
    for said in ({"max_new_tokens": 12}, {"max_new_tokens": 12, "do_sample": False, "return_full_text": True}):
        assert pipe(PROMPTS[0], **said)[0]["generated_text"] == expected
    assert len(pipe(PROMPTS, max_new_tokens=4, do_sample=True, temperature=0.7, batch_size=2)) == len(PROMPTS)


def test_an_export_ends_where_the_parent_ends_and_keeps_nothing_of_how_it_sampled(tmp_path):
    parent = load_parent(TINY, check=False)
    parent.model.generation_config = GenerationConfig(
        eos_token_id=[7, 0], pad_token_id=1, do_sample=True, temperature=0.6, top_k=20, max_length=40
    )
    folder = export(make_run(tmp_path / "run", parent), tmp_path / "out")
    kept = {"eos_token_id": [0, 7], "pad_token_id": 1, "do_sample": False}
    assert json.loads((folder / "generation_config.json").read_text()) == kept


def exported_rule(temperature):
    return CommitRule(0.9, None, temperature, 1.0, torch.tensor([EOS_ID]), generator(1))


@pytest.mark.parametrize("shift", [False, True])
def test_the_exported_rule_leaves_a_first_token_alone_that_an_eos_leaves_alone(shift):
    """As the engine does (`tests/test_commit_rules.py`)."""
    token, confidence = torch.tensor([2, EOS_ID, 4, 5]), torch.tensor([0.5, 0.95, 0.3, 0.3])
    token, commit = exported_rule(0.0)(token, confidence, torch.ones(4, dtype=torch.bool), shift)
    assert commit.tolist() == [shift, True, True, True] and token.tolist() == [2, EOS_ID, EOS_ID, EOS_ID]
