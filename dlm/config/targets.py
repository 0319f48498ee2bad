"""Which code a config may name. A config can come from elsewhere, in the folder of a run, and loading one must not run
whatever it says."""

from __future__ import annotations

import inspect
from typing import Any

from hydra.utils import get_object

OWN, LIBRARIES = "dlm", ("torch", "lightning", "transformers", "peft")


def require_known(config: Any) -> None:
    """`ValueError` where a plain config (dicts and lists) names, at any depth, a `_target_` that is neither this
    package's own nor a class of one of the libraries. A name that leads through a package to another one's code
    (`dlm.runs.run.subprocess.run`) is judged by where it leads."""
    if isinstance(config, list):
        for value in config:
            require_known(value)
    elif isinstance(config, dict):
        if "_target_" in config:
            require_known_target(str(config["_target_"]))
        for value in config.values():
            require_known(value)


def require_known_target(name: str) -> None:
    refused = ValueError(
        f"_target_ {name!r} is not code that a config may name: choose something of {OWN}, or a class of "
        f"{', '.join(LIBRARIES)}"
    )
    if name.partition(".")[0] not in (OWN, *LIBRARIES):
        raise refused  # before anything of it is imported
    try:
        found = get_object(name)
    except Exception as error:  # whatever importing raises
        raise ValueError(f"_target_ {name!r} cannot be found: {error}") from error
    home = (getattr(found, "__module__", None) or "").partition(".")[0]
    if not callable(found) or not (home == OWN or (home in LIBRARIES and inspect.isclass(found))):
        raise refused


def name_of(target: str) -> str:
    """Which option a `_target_` is: `dlm.attention.block_noisy.BlockNoisy` → `block_noisy`."""
    return target.split(".")[-2] if target.count(".") > 2 else target.split(".")[-1].lower()
