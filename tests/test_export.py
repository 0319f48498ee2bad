"""Export: the folder loads without us and decodes as our engine does; what cannot be exported is refused."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import EOS_ID, ROOT, config, logits_in_bfloat16
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dlm.attention.block import Block
from dlm.config.build import converted_denoiser
from dlm.decoding import threshold
from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import AboveThreshold, Threshold
from dlm.export import check_decode_mask, export
from dlm.exported.modeling_block_diffusion import CommitRule
from dlm.model.parent import Parent, load_parent, new_parent
from dlm.runs.run import Run
from dlm.trainable.lora import Lora
from dlm.types import generator

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
CASES = {
    "block": ("tiny", "attention=block", "token_shift=false"),
    "block_shift": ("tiny", "attention=block", "token_shift=true"),
    "bidir": ("tiny", "attention=bidir", "token_shift=false"),
    "bidir_shift": ("tiny", "attention=bidir", "token_shift=true"),
    "block_noisy": ("tiny", "attention=block_noisy", "token_shift=false"),
    "ar": ("tiny", "attention=ar", "token_shift=true"),
    "llama": ("llama", "attention=block", "token_shift=false"),
    "gemma3": ("gemma3", "attention=block", "token_shift=true"),
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
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
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
def stranger(runs, tmp_path_factory):
    """What the exported folders generate in a fresh process: {case: [(tokens, nfe) of every prompt] per setting}."""
    root = tmp_path_factory.mktemp("exported")
    folders = {str(export(run, root / name)): name for name, run in runs.items()}
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


@pytest.mark.parametrize("case", CASES)
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
    again = load_parent(str(folder), check=False)  # without trust_remote_code: the parent's class
    assert all(torch.equal(weight, before.get(n, weight)) for n, weight in again.model.state_dict().items())
    assert again.mask_id == json.loads((folder / "config.json").read_text())["mask_token_id"]


def test_an_exported_model_that_is_saved_and_loaded_again_is_the_same(runs, tmp_path):
    """I10: export → load → save → load, weights and tokens."""
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
    monkeypatch.setattr("dlm.export.write_configs", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
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

    check_decode_mask(Block(8), "block")
    with pytest.raises(ValueError, match="attention=nearsighted cannot be exported"):
        check_decode_mask(Nearsighted(8), "nearsighted")


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
    run = make_run(tmp_path / "run", parents["llama"], "decoding._target_=dlm.decoding.threshold.Half")
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


def test_the_command_exports_and_says_how_to_load(runs, tmp_path):
    runs_dir = runs["llama"].folder.parent
    words = [sys.executable, "-m", "dlm.export", f"runs_dir={runs_dir}", "run=llama", f"to={tmp_path}/out"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"AutoModelForCausalLM.from_pretrained('{tmp_path}/out', trust_remote_code=True)" in done.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_block_diffusion.py",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    again = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 1 and again.stderr.startswith("error: to ") and again.stderr.count("\n") == 1


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
        ({"temperature": -1.0}, "temperature -1.0 must be >= 0"),
        ({"stop_strings": "x"}, "give tokenizer= as well"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(ids, **wrong)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_exported_rule_samples_in_bfloat16_as_from_the_same_logits_in_float32(temperature):
    logits = logits_in_bfloat16()[0].repeat(50, 1)
    token, confidence = (
        torch.stack(found)
        for found in zip(*(exported_rule(temperature).sample(x) for x in (logits, logits.float())), strict=True)
    )
    assert torch.equal(token[0], token[1]) and torch.equal(confidence[0], confidence[1])


def exported_rule(temperature):
    return CommitRule(0.9, None, temperature, 1.0, torch.tensor([EOS_ID]), generator(1))
