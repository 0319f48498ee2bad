"""Who a run is: the hash of its resolved config, without the keys that cannot change the weights."""

from __future__ import annotations

import re
from typing import Any

from dlm.runs.digest import digest
from dlm.runs.renamed import RENAMED, with_targets

# Keys, by their path in the config, that cannot change the weights. Decoding and evaluation are not part of a run's
# identity: a finished run with another `evaluation` is evaluated again, not trained again. `study` describes sweeps.
# (`is_volatile` adds every `runs_dir`.)
VOLATILE = ("logger", "force", "retry", "runtime", "evaluation", "decoding", "study")
VOLATILE += ("objective", "trusted_packages")  # of a search; code that is named has a `_target_`
VOLATILE += ("trainer.volatile",)  # a former name of `runtime`
VOLATILE += ("trainer.compile",)  # changes the weights by rounding only, as runtime.threads does
VOLATILE += ("data.cache", "data.num_proc")  # where and how the corpus is prepared
# Callbacks that only observe. Any other callback may change the training, so it is part of the identity.
VOLATILE += tuple(f"callbacks.{name}" for name in ("self_check", "drift", "progress_bar", "learning_rate"))
# Options with the default that reproduces runs whose configs lack them. At this value an option is left out of the id,
# so such runs keep their ids. If an option is missing here, the ids in tests/data/run_ids.json change and a test fails.
NEUTRAL: dict[str, Any] = {
    "data.fill": "scored",
    "data.distinct": None,
    "data.group": 1,
    "data.held_out": "tail",
    "data.order": "random",
    "data.name": None,
    "data.revision": None,
    "masking.views": 1,
    "masking.complementary": True,
    "masking.score": "masked",
    "noise_level._target_": "dlm.noise_level.uniform.Uniform",
    "kernel._target_": "dlm.kernel.absorb.Absorb",
    "model.one_axis": False,
    "attention.noise_per": "block",
    "attention.block_anchor": "absolute",
    "attention.canvas": "whole",
    "loss.per": "token",
    "loss.scale": 1.0,
    "schedule": None,
    "budget.unit": "tokens",
    "budget.amount": None,
    "trainable.targets": "all-linear",
    "trainable.beside": None,
    "trainable.frozen": None,
    "optimizer.vision_lr": None,
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "trainer.on_nonfinite": "stop",
}


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested keys: {"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def run_id(config: dict[str, Any]) -> str:
    """The id of a resolved config: 12 hexadecimal digits. If they read as a number, the first becomes a letter g–p."""
    flat = flatten(with_targets(config, RENAMED))
    identity = {
        key: value
        for key, value in flat.items()
        if not is_volatile(key) and not (key in NEUTRAL and value == NEUTRAL[key])
    }
    if flat.get("budget.unit", "tokens") != "tokens":
        identity.pop("tokens", None)  # the budget is `budget.amount`
    name = digest(identity)
    if re.fullmatch(r"\d+(e\d+)?", name):  # a command line would parse it as a number
        name = "ghijklmnop"[int(name[0])] + name[1:]
    return name


def is_volatile(key: str) -> bool:
    """Whether the option of a dotted key cannot change the weights."""
    return key.split(".")[-1] == "runs_dir" or any(key == v or key.startswith(v + ".") for v in VOLATILE)
