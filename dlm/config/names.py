"""Refuses options that nothing reads. Hydra accepts any name after a `+`, and an option in the config is part of the
run's identity: a misspelt one would train a new run, as if nothing had been said."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from dlm.config.folders import CONF

# Read by other commands: sweeps and the study; what Hydra adds.
ELSEWHERE = ("study", "trusted_packages", "hydra")


def require_names(cfg: Mapping[str, Any], command: str, *settings: type) -> None:
    """Raises `ValueError` if a command's config has an option that is neither a field of one of the dataclasses
    `settings` nor one of the command's groups, at the top or within a field that is a dataclass itself."""
    hints = {name: kind for one in settings for name, kind in get_type_hints(one).items()}
    require_among(cfg, [*hints, *groups_of(command), *ELSEWHERE], "")
    for name, kind in hints.items():
        if is_dataclass(kind) and isinstance(cfg.get(name), Mapping):
            require_among(cfg[name], get_type_hints(kind), f"{name}.")


def groups_of(command: str) -> Iterator[str]:
    """The groups in the defaults list of a command's YAML. A group that is not in it is read by another command."""
    for item in OmegaConf.load(CONF / f"{command}.yaml").defaults:
        if OmegaConf.is_dict(item):
            yield from (str(name) for name in item)


def require_argument_names(
    node: Mapping[str, Any], target: Callable[..., Any], name: str, annotated: Collection[str] = ()
) -> None:
    """Raises `ValueError` if the config `node`, at `name`, gives `target` an argument that it does not take. Its
    `**kwargs` are the names in `annotated` or, if there are none, any."""
    known = argument_names(target) or annotated
    if known:
        given = [key for key in node if not (key.startswith("_") and key.endswith("_"))]  # Hydra's own: _target_
        require_among(given, known, f"{name}." if name else "")


def argument_names(target: Callable[..., Any]) -> set[str] | None:
    """The names of the arguments of a class or a function; None if it takes any. `**kwargs` of a constructor stand for
    the arguments of its base class."""
    names: set[str] = set()
    takes_any = False
    for owner in target.__mro__ if inspect.isclass(target) else [target]:
        function = vars(owner).get("__init__") if inspect.isclass(owner) else owner
        if function is None:
            continue
        if function is object.__init__:
            return None if takes_any else names
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # compiled code
            return None
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if not takes_any:
            return names
    return None


def require_among(given: Collection[str], known: Collection[str], prefix: str) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{prefix}{name} is no option{suggestion(str(name), known)}")


def suggestion(name: str, known: Collection[str]) -> str:
    """`: did you mean …?` of the nearest of the known names, else a list of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f": did you mean {near[0]}?" if near else f": choose one of {', '.join(sorted(set(known)))}"
