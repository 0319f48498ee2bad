"""The configs of a study's points, composed as the commands themselves would, but each choice of options once."""

from __future__ import annotations

from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlm.config.command_line import present
from dlm.config.folders import CONF, config_folders


def resolved(name: str, what: str, overrides: list[str]) -> dict[str, Any]:
    """The config `name` with its overrides, as the command of that name would make it."""
    overrides = [present(o) for o in overrides]
    seeds = [o.partition("=")[2] for o in overrides if o.startswith("seed=")]
    try:
        config = composed(name, tuple(o for o in overrides if not o.startswith("seed=")))
        if not seeds:
            return OmegaConf.to_container(config, resolve=True)
        composed_with = config.seed
        try:
            config.seed = int(seeds[-1])  # in place: a copy for every seed would cost three quarters of a large plan
            return OmegaConf.to_container(config, resolve=True)
        finally:
            config.seed = composed_with
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{what} ({' '.join(overrides)}) cannot be composed: {reason}") from error


@cache
def composed(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """A config before it is resolved; made once for all seeds and all sweeps that share a point. Hydra composes what
    the options of groups make (0.1 s) once for all values that go on top."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if any(o.type is not OverrideType.CHANGE for o in parsed):  # keys added or deleted
        return compose_by_hydra(name, overrides)
    on_top = [o for o in parsed if not is_group(o.key_or_group)]
    config = compose_by_hydra(name, tuple(o.input_line for o in parsed if o not in on_top)).copy()
    for override in on_top:  # as Hydra does
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    return config


def is_group(name: str) -> bool:
    return any((folder / name).is_dir() for folder in config_folders())


@cache
def compose_by_hydra(name: str, overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(name, list(overrides))
