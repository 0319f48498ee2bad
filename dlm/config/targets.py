"""Restricts the code that a config may name. A config may come from elsewhere, in the folder of a run, and loading it
must not run arbitrary code.

A user's own packages are code that a config may name once the user says so: `trusted_packages=[mylab]` on the command
line or in a config of theirs, or DLM_TRUSTED_PACKAGES=mylab in the environment. A config that is loaded with a run
cannot say it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from typing import Any

from hydra.utils import get_object

OWN, LIBRARIES = "dlm", ("torch", "lightning", "transformers", "peft")
TRUSTED = "DLM_TRUSTED_PACKAGES"  # names separated by commas; processes that a command starts inherit it


def trust(packages: Iterable[str]) -> None:
    """Let configs name the code of packages, in this process and those that it starts. Raises `ValueError` for a name
    that is none of a package."""
    for name in packages:
        if not str(name).isidentifier():
            raise ValueError(f"trusted_packages {name!r} must be the name of a package: give one as in [mylab]")
    os.environ[TRUSTED] = ",".join(dict.fromkeys([*trusted(), *packages]))


def trusted() -> list[str]:
    """The user's packages that configs may name."""
    return [name.strip() for name in os.environ.get(TRUSTED, "").split(",") if name.strip()]


def require_known(config: Any) -> None:
    """Raises `ValueError` if a plain config (dicts and lists), at any depth, has a `_target_` that is neither code of
    this package or a trusted one nor a class of one of `LIBRARIES`. A name that reaches foreign code through an import
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
    own = (OWN, *trusted())
    refusal = ValueError(
        f"_target_ {name!r} is not code that a config may name: choose something of {', '.join(own)}, or a class of "
        f"{', '.join(LIBRARIES)}; code of your own needs trusted_packages=[{name.partition('.')[0] or 'PACKAGE'}]"
    )
    if name.partition(".")[0] not in (*own, *LIBRARIES):
        raise refusal  # before anything is imported
    try:
        target = get_object(name)
    except Exception as error:  # an import may raise anything
        raise ValueError(f"_target_ {name!r} cannot be found: {error}") from error
    package = (getattr(target, "__module__", None) or "").partition(".")[0]
    if not callable(target) or not (package in own or (package in LIBRARIES and inspect.isclass(target))):
        raise refusal


def name_of(target: str) -> str:
    """The option that a `_target_` belongs to: `dlm.attention.block_noisy.BlockNoisy` → `block_noisy`."""
    return target.split(".")[-2] if target.count(".") > 2 else target.split(".")[-1].lower()
