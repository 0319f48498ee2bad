"""Composes the configs of a study's points exactly as the commands would, but each choice of options only once."""

from __future__ import annotations

from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlm.config.command_line import with_present_name
from dlm.config.folders import CONF, config_folders
from dlm.config.hints import is_group
from dlm.config.targets import trust


def resolve_config(name: str, subject: str, overrides: list[str]) -> dict[str, Any]:
    """Compose and resolve the config `name` as the command of that name would.

    Raises `ValueError`, naming `subject` (the point or evaluation concerned) and the overrides, if composing fails.
    """
    overrides = [with_present_name(o) for o in overrides]
    seeds = [o.partition("=")[2] for o in overrides if o.startswith("seed=")]
    try:
        config = compose_config(name, tuple(o for o in overrides if not o.startswith("seed=")))
        trust(config.get("trusted_packages") or ())  # the jobs inherit it
        if not seeds:
            return OmegaConf.to_container(config, resolve=True)
        default_seed = config.seed
        try:
            config.seed = int(seeds[-1])  # in place: a copy for every seed would cost three quarters of a large plan
            return OmegaConf.to_container(config, resolve=True)
        finally:
            config.seed = default_seed
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{subject} ({' '.join(overrides)}) cannot be composed: {reason}") from error


@cache
def compose_config(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """Compose an unresolved config, cached across seeds and across sweeps that share a point.

    Hydra takes 0.1 s per composition, so it composes each choice of group options once; value overrides are then
    applied to a copy. Callers must restore whatever they change in the returned config.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if any(o.type is not OverrideType.CHANGE for o in parsed):  # the overrides add or delete keys
        return compose_by_hydra(name, overrides)
    values = [o for o in parsed if not is_group(o.key_or_group)]
    config = compose_by_hydra(name, tuple(o.input_line for o in parsed if o not in values)).copy()
    for override in values:  # as Hydra applies them
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    return config


def options_matching(group: str, pattern: str) -> list[str]:
    """The options of a config group that `glob(...)` chooses, sorted. Raises `ValueError` for another pattern, or none.

    As on the command line, so that a new file in the group's folder is chosen, too.
    """
    try:
        glob = OverridesParser.create().parse_override(f"{group}={pattern}").value()
    except HydraException as error:
        raise ValueError(f"{group}: {pattern!r} cannot be read: write a list, or glob(*)") from error
    if not isinstance(glob, Glob):
        raise ValueError(f"{group}: {pattern!r} is one value: write a list, or glob(*)")
    return glob.filter(sorted({path.stem for folder in config_folders() for path in (folder / group).glob("*.yaml")}))


@cache
def compose_by_hydra(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """Compose the unresolved config `name` from `conf/`, cached."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(name, list(overrides))
