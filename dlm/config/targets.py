"""Restricts the code that a config may name. A config may come from elsewhere, in the folder of a run, and loading it
must not run arbitrary code."""

from __future__ import annotations

import inspect
from typing import Any

from hydra.utils import get_object

OWN, LIBRARIES = "dlm", ("torch", "lightning", "transformers", "peft")


def require_known(config: Any) -> None:
    """Raises `ValueError` if a plain config (dicts and lists), at any depth, has a `_target_` that is neither code of
    this package nor a class of one of `LIBRARIES`. A name that reaches foreign code through an import
    (`dlm.runs.run.subprocess.run`) is judged by the module that defines the code."""
    if isinstance(config, list):
        for value in config:
            require_known(value)
    elif isinstance(config, dict):
        if "_target_" in config:
            require_known_target(str(config["_target_"]))
        for value in config.values():
            require_known(value)


def require_known_target(name: str) -> None:
    refusal = ValueError(
        f"_target_ {name!r} is not code that a config may name: choose something of {OWN}, or a class of "
        f"{', '.join(LIBRARIES)}"
    )
    if name.partition(".")[0] not in (OWN, *LIBRARIES):
        raise refusal  # before anything is imported
    try:
        target = get_object(name)
    except Exception as error:  # an import may raise anything
        raise ValueError(f"_target_ {name!r} cannot be found: {error}") from error
    package = (getattr(target, "__module__", None) or "").partition(".")[0]
    if not callable(target) or not (package == OWN or (package in LIBRARIES and inspect.isclass(target))):
        raise refusal


def name_of(target: str) -> str:
    """The option that a `_target_` belongs to: `dlm.attention.block_noisy.BlockNoisy` → `block_noisy`."""
    return target.split(".")[-2] if target.count(".") > 2 else target.split(".")[-1].lower()
