"""What all tests share: shapes are checked, tiny random models of several architectures, configs by glob."""

import jaxtyping
from typechecker import jaxtyped

# Every function and dataclass of these modules checks the shapes in its signature. (dlm.attention stays out: torch
# counts the arguments of a mask_mod, which a wrapper hides.)
CHECKED = [
    "types",
    "masking",
    "model.denoiser",
    "model.readout",
    "loss",
    "decoding",
    "conversion",
    "evaluation",
    "data",
    "kernel",
    "noise_level",
    "auxiliary",
    "rollout",
]
jaxtyping.jaxtyped = jaxtyped
jaxtyping.install_import_hook([f"dlm.{name}" for name in CHECKED], "typechecker.check")

import json
import os
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.utils import get_class
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM

from analysis.plan.compose import compose_config
from dlm.attention.base import AttentionPattern
from dlm.config.build import make
from dlm.data import prose
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.types import Batch, Rows, generator

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"


def read_once(load):
    """Hydra's reading of a YAML, which takes a third of the time of composing, once for each content of a file."""
    known = {}

    def load_config(source, config_path: str):
        path = os.path.join(source.path, config_path)
        file = os.stat(path if path.endswith((".yaml", ".yml")) else f"{path}.yaml")
        key = (path, source.provider, file.st_ino, file.st_mtime_ns, file.st_size)
        if key not in known:
            known[key] = pickle.dumps(load(source, config_path))
        return pickle.loads(known[key])  # a copy, out of which Hydra takes the list of defaults

    return load_config


FileConfigSource.load_config = read_once(FileConfigSource.load_config)
VOCAB, MASK_ID, EOS_ID = 61, 60, 0
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # far from uniform predictions, so that a wrong mask shows
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
}
# What most tests train: short rows of tasks with short answers, and no recipe.
BASE = {"recipe": "none", "model": "tiny", "data": "embedded", "evaluation": "full"}
BASE |= {"block_size": 16, "tokens": 2_000_000}
ITS_OWN = {"scale": ("block_size", "tokens"), "recipe=untrained": ("model",)}
ITS_OWN |= {"pretrain": ("model", "data", "evaluation", "tokens")}
# A second or two of the whole evaluation.
LIGHT_EVALUATION = (
    "evaluation=full",
    "evaluation.tasks_per_family=1",
    "evaluation.calibration_per_family=1",
    "evaluation.thresholds=[0.9,0.5]",
    "evaluation.max_new_tokens=4",
    "evaluation.likelihood_rows=4",
    "evaluation.length=64",
    "evaluation.cloze_items=2",
    "evaluation.throughput_prompts=1",
    "evaluation.throughput_repeats=1",
)
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 6, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    "mistral": {"sliding_window": 6},
}
# One without and one with sliding windows, tied embeddings and norms of its own. What fails on another architecture
# alone is what `make test-all` is for.
EVERYDAY = ("llama", "gemma3_text")


def everyday(values, number: int = 1):
    """Parameters of which `make test` takes the first `number`, and `make test-all` all."""
    return [
        pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.grid if i >= number else ())
        for i, v in enumerate(values)
    ]


def one_in(n: int, values):
    """Parameters that are many alike, of which `make test` takes one in `n`, and `make test-all` all."""
    return [
        pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.grid if i % n else ())
        for i, v in enumerate(values)
    ]


def tiny(architecture: str, dtype=torch.float64):
    """A random model of 3 layers, in float64 so that equality means equality."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(SHAPE | ARCHITECTURES[architecture]))
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype).eval()


def options(group: str, conf: Path = CONF) -> list[str]:
    """Every YAML of a config group."""
    return sorted(p.stem for p in (conf / group).glob("*.yaml"))


def text_options(group: str) -> list[str]:
    """Those of a group that a parent of text takes, with the packages of every machine."""
    return [option for option in options(group) if option not in ("connector", "qlora", "scenes", "image_chat")]


@cache
def attention_yaml(name: str):
    return OmegaConf.load(CONF / "attention" / f"{name}.yaml")


def pattern_of(name: str, block_size: int) -> AttentionPattern:
    """An attention pattern as its YAML makes it."""
    return make(OmegaConf.create({"block_size": block_size, "attention": attention_yaml(name)}).attention)


# By glob: an option that is added is held to the same contracts.
PATTERNS = {name: get_class(attention_yaml(name)._target_) for name in options("attention")}
WITH_SHIFT = [(n, s) for n in PATTERNS for s in (False, True) if s or not PATTERNS[n].requires_token_shift]
CACHEABLE = [(n, s) for n, s in WITH_SHIFT if PATTERNS[n].cacheable]
CLEAN = [name for name in PATTERNS if PATTERNS[name].clean_stream]


@cache
def shared(architecture: str):
    """The model that all tests of a process share."""
    return tiny(architecture)


def denoiser(model, pattern: str, block_size: int, token_shift: bool) -> Denoiser:
    return Denoiser(model, pattern_of(pattern, block_size), MASK_ID, token_shift, layer_types(model))


def let_it_say(scorer: Denoiser, score) -> None:
    """Let `score(scored, ids, positions, …)` give the logits of a denoiser's decoding forwards."""
    scorer.hidden, scorer.logits = score, lambda logits: logits


def random_batch(rows: int, length: int, documents: list[int] | None = None, seed: int = 0) -> Batch:
    """Random tokens; `documents` are the lengths of the packed documents of every row."""
    x0 = torch.randint(2, MASK_ID, (rows, length), generator=generator(seed))
    sizes = documents or [length]
    document = torch.cat([torch.full((n,), i) for i, n in enumerate(sizes)]).expand(rows, -1).clone()
    position = torch.cat([torch.arange(n) for n in sizes]).expand(rows, -1).clone()
    return Batch(x0, torch.ones_like(x0, dtype=torch.bool), document, position)


def rows_of(pattern, batch: Batch) -> Rows:
    """The rows a model reads under a pattern: [noisy ; clean] as far as it has them."""
    copies = pattern.noisy_stream + pattern.clean_stream
    clean = torch.full_like(batch.maskable, not pattern.noisy_stream)
    both = torch.cat([clean, ~clean], 1) if copies == 2 else clean
    return Rows(both, batch.document.repeat(1, copies), batch.position.repeat(1, copies))


# What an option cannot do without.
NEEDS = {
    "masking=learned": [f"masking.runs_dir={ROOT / 'tests' / 'data'}", "masking.trace=trace.json"],
    "model=run": ["model.run=none"],
    "decoding=policy": [f"decoding.policy={ROOT / 'tests' / 'data' / 'policy.json'}"],
}


def option_yaml(group: str, name: str):
    """An option as its YAML says, with what it needs, without the rest of a config."""
    needs = OmegaConf.from_dotlist(NEEDS.get(f"{group}={name}", [])).get(group, {})
    return OmegaConf.merge(OmegaConf.load(CONF / group / f"{name}.yaml"), needs)


def config(*overrides: str, name: str = "train"):
    """A composed config, with what its options need, and in training with `BASE` where nothing else is said. Hydra
    composes each choice of options once."""
    needs = [need for override in overrides for need in NEEDS.get(override, [])]
    given = {override.partition("=")[0].lstrip("+~") for override in (*needs, *overrides)}
    chosen = given & {"scale", "pretrain"} | {override for override in overrides if override == "recipe=untrained"}
    given |= {key for choice in chosen for key in ITS_OWN[choice]}
    base = [f"{key}={value}" for key, value in BASE.items() if key not in given] if name == "train" else []
    return compose_config(name, (*base, *needs, *overrides)).copy()


def as_before(cfg):
    """The config with the values that its defaults had when what the tests keep was written down."""
    for key, value in {"data.fill": "scored", "attention.max_tail": 32, "attention.canvas": "whole"}.items():
        if OmegaConf.select(cfg, key) is not None:
            OmegaConf.update(cfg, key, value)
    return cfg


def resolved(*overrides) -> dict:
    return OmegaConf.to_container(config(*overrides), resolve=True)


def logits_in_bfloat16():
    """Of tokens that are more and less certain. bfloat16 knows 20 and 20.125 and nothing between, so a log-sum-exp in
    it is wrong by up to 6 %."""
    logits = 2 * torch.randn(1, 200, 500, generator=generator(0))
    logits[..., 7] = torch.linspace(8, 25, 200)
    return logits.bfloat16()


def shorten_prose(monkeypatch) -> None:
    """A few chapters, so that no test waits for the whole book to be tokenised."""
    chapters = {split: prose.chapters(split)[:5] for split in ("train", "val", "test")}
    monkeypatch.setattr(prose, "chapters", chapters.__getitem__)
    monkeypatch.setattr(prose, "ENCODED", {})  # nor trains on what another test encoded


def said_by(script: str, program: str) -> dict:
    """What a program of a script in tests/ prints, in a process of its own: one line of JSON."""
    command = [sys.executable, str(ROOT / "tests" / script), program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def exit_code(main) -> int:
    """The exit code of a command that is called in this process."""
    try:
        main()
    except SystemExit as error:
        return error.code
    return 0
