"""What kind of value an option takes. Objects check their own ranges; a text where a number belongs would only be found
amid the work, by whoever computes with it first."""

from __future__ import annotations

import math

from omegaconf import DictConfig, OmegaConf

COUNT, NUMBER, SWITCH, NAME = "a whole number", "a finite number", "true or false", "a name"
KINDS = {
    COUNT: {
        "block_size": None,
        "seed": 0,
        "data.length": None,
        "data.batch_size": None,
        "data.val_rows": None,
        "masking.views": None,
        "trainer.accumulate": 1,
        "runtime.pieces": 1,
        "runtime.checkpoint_every": 1,
        "runtime.val_every": 1,
        "runtime.log_every": 1,
        "runtime.drift_every": 0,
    },
    NUMBER: {
        "lr": None,
        "tokens": None,
        "masking.t_min": None,
        "masking.t_max": None,
        "optimizer.warmup": None,
        "optimizer.min_lr_ratio": None,
        "optimizer.weight_decay": 0,
        "trainer.clip": 0,
        "runtime.memory_gb": 0,
    },
    SWITCH: {
        "token_shift": None,
        "optimizer.fused": None,
        "force": None,
        "retry": None,
        "trainer.compile": None,
        "runtime.activation_checkpointing": None,
        "runtime.progress_bar": None,
    },
    NAME: {
        "masking.count": None,
        "masking.score": None,
        "loss.per": None,
        "trainer.on_nonfinite": None,
    },
}
OPTIONAL = (
    "trainer.clip",
    "runtime.memory_gb",
    "runtime.activation_checkpointing",
)  # null is a value of theirs


def require_kinds(cfg: DictConfig) -> None:
    """`ValueError` where an option that the config has is of another kind, or below its least value."""
    for kind, options in KINDS.items():
        for name, least in options.items():
            value = OmegaConf.select(cfg, name, default=cfg)
            if value is cfg:  # it has no such option
                continue
            if value is None and name in OPTIONAL:
                continue
            if not is_of(kind, value) or (least is not None and value < least):
                limit = "" if least is None else f" of at least {least}"
                raise ValueError(f"{name} {value!r} must be {kind}{limit}: set {name}=VALUE")


def is_of(kind: str, value: object) -> bool:
    if kind == NAME:
        return isinstance(value, str)
    if kind == SWITCH or isinstance(value, bool):
        return kind == SWITCH and isinstance(value, bool)
    return isinstance(value, int) or (kind == NUMBER and isinstance(value, float) and math.isfinite(value))
