"""Says which option was meant where Hydra has refused a name that no config has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlm.config.folders import CONF, config_folders
from dlm.config.names import suggestion


def hints(config: str, arguments: Sequence[str]) -> Iterator[str]:
    """`data.lenght is no option: did you mean length?` of every argument of a command line that changes an option which
    its config, with the groups that the arguments choose, does not have."""
    overrides = [a for a in arguments if "=" in a and a[0] not in "+~-"]
    chosen = [a for a in overrides if is_group(a.partition("=")[0])]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = OmegaConf.to_container(compose(config, chosen), resolve=False)
    except (HydraException, OmegaConfBaseException):  # the groups are what is wrong, and Hydra has said so
        return
    for override in overrides:
        key = override.partition("=")[0]
        if override not in chosen and key.partition("/")[0].partition(".")[0] != "hydra":
            yield from unknown(composed, key)


def unknown(composed: dict[str, Any], key: str) -> Iterator[str]:
    """What is wrong with a dotted key, if anything is."""
    node, path = composed, ""
    for name in key.split("."):
        if not isinstance(node, dict):
            return
        if name not in node:
            yield f"{path}{name} is no option{suggestion(name, [str(known) for known in node])}"
            return
        node, path = node[name], f"{path}{name}."


def is_group(name: str) -> bool:
    return any((folder / name.partition("@")[0]).is_dir() for folder in config_folders())
