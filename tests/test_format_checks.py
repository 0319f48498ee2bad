"""What an engine would silently decode otherwise is refused by name, and what is written is what the engines load."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from common import pattern_of
from safetensors.torch import load_file, save_file
from test_formats import PROMPTS, RECIPES, SHAPE, a_run, ours
from transformers import AutoConfig, AutoModelForCausalLM

from dlm.decoding.threshold import Threshold
from dlm.export import export, main
from dlm.format.base import Converted
from dlm.format.nemotron import Nemotron
from dlm.format.sdar import SDAR

RULE = {"threshold": 0.9, "tokens_per_step": None}
PATTERN = {"nemotron": "block_token_causal"}


def made(name: str, rule: dict | None = None, **config) -> Converted:
    """A model that the format `name` takes, without weights."""
    family, more, mask_id, kind, _ = RECIPES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SHAPE | more | config)))
    settings = {"token_shift": kind.token_shift, "mask_token_id": mask_id, "eos_token_id": 0} | (rule or RULE)
    return Converted(None, model, pattern_of(PATTERN.get(name, "block"), 8), settings, True)


def refused(name: str, subject: Converted) -> str:
    with pytest.raises(ValueError, match=f"^format={name} cannot hold this model: ") as error:
        RECIPES[name][3]().require(subject)
    return str(error.value)


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_engines_decode_as_it_was_trained_is_taken(name):
    RECIPES[name][3]().require(made(name))


@pytest.mark.parametrize("name", RECIPES)
def test_the_other_token_shift_is_refused(name):
    subject, kind = made(name), RECIPES[name][3]
    other = replace(subject, settings=subject.settings | {"token_shift": not kind.token_shift})
    assert f"train with token_shift={str(kind.token_shift).lower()}, or use format=hf" in refused(name, other)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("pattern", ["ar", "bidir", "block", "block_noisy", "block_causal", "block_token_causal"])
def test_another_context_is_refused(name, pattern):
    subject, own = replace(made(name), pattern=pattern_of(pattern, 8)), PATTERN.get(name, "block")
    if pattern == own:
        return RECIPES[name][3]().require(subject)
    reason = f"attention={pattern}, and its engines compute another mask, where position"
    if pattern in ("ar", "bidir", "block_noisy"):
        reason = "it was trained on noisy context, and its engines show it clean blocks"
    message = refused(name, subject)
    assert reason in message and f"train with attention={own}, or use format=hf" in message


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("sdar", {"attention_bias": True}, "it has attention_bias, and the engines load no such tensors"),
        ("sdar", {"hidden_act": "gelu"}, "its activation is 'gelu', and the engines compute silu"),
        ("sdar", {"use_sliding_window": True, "sliding_window": 8}, "it has a sliding window of 8 tokens"),
        ("fast_dllm", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "type 'linear'"),
        ("nemotron", {"mlp_bias": True}, "it has mlp_bias, and the engines load no such tensors"),
    ],
)
def test_layers_that_the_engines_do_not_have_are_refused(name, config, message):
    assert message in refused(name, made(name, **config))


@pytest.mark.parametrize("name", RECIPES)
def test_a_parent_of_another_family_is_refused(name):
    other = made("nemotron" if name == "sdar" else "sdar")
    family = other.model.config.model_type
    assert f"its parent is a {family}, and {RECIPES[name][3].architecture} has the layers of" in refused(name, other)


@pytest.mark.parametrize("name", RECIPES)
def test_blocks_that_begin_behind_the_prompt_are_refused_for_engines_whose_blocks_begin_with_the_text(name):
    subject = made(name)
    behind = type(subject.pattern)(8, block_anchor="prompt")
    if name == "nemotron":
        return Nemotron().require(replace(subject, pattern=behind))
    message = refused(name, replace(subject, pattern=behind))
    assert "attention.block_anchor=prompt, and its engines begin the grid of blocks with the text" in message
    assert "train with attention.block_anchor=absolute, or use format=hf" in message


@pytest.mark.parametrize(("name", "mask_id"), [("sdar", 151_669), ("fast_dllm", 151_665)])
def test_another_mask_token_than_the_engines_have_is_refused(name, mask_id):
    subject = made(name)
    other = replace(subject, settings=subject.settings | {"mask_token_id": 2})
    assert f"its mask token has id 2, and the engines hide tokens by id {mask_id}" in refused(name, other)


def test_blocks_and_commit_rules_that_an_engine_does_not_have_are_refused():
    assert "block_size 12 does not divide 32" in refused(
        "fast_dllm", replace(made("fast_dllm"), pattern=pattern_of("block", 12))
    )
    two = {"threshold": None, "tokens_per_step": 2}
    assert "decoding.tokens_per_step 2 is not to be had in the published code" in refused(
        "fast_dllm", made("fast_dllm", two)
    )
    three = {"threshold": None, "tokens_per_step": 3}
    assert "decoding.tokens_per_step 3 does not divide the block size 8" in refused("sdar", made("sdar", three))
    untrained = replace(made("nemotron"), trains_ar=False)
    assert "its clean stream was not trained as an AR model" in refused("nemotron", untrained)
    with pytest.raises(ValueError, match=r"format.dtype 'int8' is unknown: choose one of bfloat16, float16, float32"):
        SDAR("int8")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """`written(format)`: a run and its folder in bfloat16, the default."""
    made = {}

    def get(name):
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            run = a_run(root / "run", name)
            made[name] = run, export(run, root / "out", 0.3, None, RECIPES[name][3]())
        return made[name]

    return get


def spoil_tensor(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def norm(name: str) -> str:
    return f"{RECIPES[name][3].prefix}norm.weight"


FAULTS = {
    "a name": lambda t, n: t.update({"adapter.lora_A.weight": torch.zeros(1, dtype=torch.bfloat16)}),
    "a missing tensor": lambda t, n: t.pop(norm(n)),
    "a shape": lambda t, n: t.update({norm(n): torch.ones(17, dtype=torch.bfloat16)}),
    "a type": lambda t, n: t.update({norm(n): torch.ones(16)}),
}
MESSAGES = {
    "a name": r"tensor adapter.lora_A.weight has shape \(1,\), and the engines expect None",
    "a missing tensor": r"norm.weight has shape None, and the engines expect \(16,\)",
    "a shape": r"norm.weight has shape \(17,\), and the engines expect \(16,\)",
    "a type": "norm.weight is stored as F32, and config.json says bfloat16",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", RECIPES)
def test_the_check_finds_tensors_that_the_engines_do_not_expect(name, fault, written, tmp_path):
    folder = copied(written(name)[1], tmp_path)
    spoil_tensor(folder, lambda tensors: FAULTS[fault](tensors, name))
    with pytest.raises(ValueError, match=MESSAGES[fault]):
        RECIPES[name][3]().verify(folder)


@pytest.mark.parametrize("name", RECIPES)
def test_the_check_finds_every_key_that_is_missing_or_wrong(name, written, tmp_path):
    folder, layout = copied(written(name)[1], tmp_path), RECIPES[name][3]()
    layout.verify(folder)
    file = folder / "config.json"
    values = json.loads(file.read_text())
    for key, value in layout.required(values).items():
        file.write_text(json.dumps({k: v for k, v in values.items() if k != key}))
        with pytest.raises(ValueError, match=f"{key}|mask_token_id"):
            layout.verify(folder)
        if value is not ...:
            file.write_text(json.dumps(values | {key: "other"}))
            with pytest.raises(ValueError, match=f"{key}|is stored as"):
                layout.verify(folder)


def copied(folder, to):
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_an_sdar_folder_has_its_rope_theta_where_each_engine_looks_for_it(written):
    """SGLang asks the config object, which in transformers 5 has it in `rope_parameters` only, and takes 10000."""
    _, folder = written("sdar")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert getattr(config, "rope_theta", 10_000.0) == 1e6 == config.rope_parameters["rope_theta"]
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 1e6


STRANGER = """
import json, sys
sys.modules["dlm"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32)
prompts, new = json.load(sys.stdin)
out = [model.generate(torch.tensor([p]), max_new_tokens=new, eos_token_id=[])[0, len(p):] for p in prompts]
print(json.dumps([tokens.tolist() for tokens in out]))
"""


@pytest.mark.slow
def test_an_sdar_folder_also_decodes_with_plain_transformers(tmp_path):
    run = a_run(tmp_path / "run", "sdar", True)
    folder = export(run, tmp_path / "out", 0.3, None, SDAR("float32"))
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder)],
        input=json.dumps([PROMPTS, 14]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ours(run, Threshold(0.3), PROMPTS)[0]


@pytest.mark.trains
def test_the_command_writes_the_format_that_is_asked_for_and_its_card_says_how_to_serve_it(tmp_path, call):
    run = a_run(tmp_path / "runs" / "abc", "sdar")
    command = (main, f"runs_dir={tmp_path}/runs", "run=abc", f"to={tmp_path}/out", "threshold=0.8")
    code, _, err = call(*command, "format=nemotron")
    assert code == 1 and "format=nemotron cannot hold this model: its parent is a qwen3" in err
    code, _, err = call(*command, "format=sdar")
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "sglang.yaml").read_text() == "block_size: 4\nthreshold: 0.8\n"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "--dllm-block-length 4" in card and "low_confidence_dynamic --dllm-confidence-threshold 0.8" in card
    assert json.loads((run.model_folder / "config.json").read_text())["model_type"] == "qwen3"
