"""Checks the name and the type of every option up front: a string in place of a number would fail mid-run, and a
misspelt name would train another run than was meant.

An option is an argument of the constructor that its node builds or, if it builds no object, a field of
`dlm.config.settings`; its type is the annotation there. Objects check their own ranges.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, NewType, Union, Unpack, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf

from dlm.config.names import require_argument_names, require_names
from dlm.config.targets import OWN

Text = NewType("Text", str)  # unlike a `str`, it may be empty
WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a name", Text: "a text"}
LISTS, DICTS, UNIONS = (list, tuple, Sequence, Iterable), (dict, Mapping), (Union, types.UnionType)


@dataclass(frozen=True)
class AtLeast:
    """The lower bound of a number: `Annotated[int, AtLeast(1)]`."""

    least: float


def require_options(cfg: DictConfig, command: str, *settings: type) -> None:
    """Raises `ValueError` if a command's config has an option that is no field of one of the dataclasses `settings` and
    no group of the command, or a value of another type than the first of them says."""
    require_names(OmegaConf.to_container(cfg, resolve=False), command, *settings)
    require_kinds(cfg, settings[0])


def require_kinds(cfg: DictConfig, settings: type) -> None:
    """Raises `ValueError` if a value of a config has another type than the field of its name in the dataclass
    `settings`. Missing values and values without a field are not checked."""
    require_fields(OmegaConf.to_container(cfg, resolve=True), settings, "")


def require_fields(values: dict[str, Any], settings: type, prefix: str) -> None:
    for name, kind in get_type_hints(settings, include_extras=True).items():
        value = values.get(name, MISSING)
        if is_dataclass(kind) and isinstance(value, dict):
            require_fields(value, kind, f"{prefix}{name}.")
        elif not is_dataclass(kind):
            require(value, kind, prefix + name)


def require_arguments(node: Any, name: str) -> None:
    """Raises `ValueError` if a plain config (dicts and lists), at any depth, gives a `_target_` an argument that it
    does not take or, if it is of this package, one of another type than its annotation. `name` is the path of `node`
    in the config."""
    if isinstance(node, dict):
        target = str(node.get("_target_", ""))
        # Libraries accept more than their annotations say, and check their arguments themselves.
        kinds = argument_kinds(get_object(target)) if target.startswith(f"{OWN}.") else {}
        if target:
            require_argument_names(node, get_object(target), name, kinds)
        for key, value in node.items():
            full = f"{name}.{key}" if name else key
            require_arguments(value, full)
            require(value, kinds.get(key, Any), full)
    elif isinstance(node, list):
        for value in node:
            require_arguments(value, name)


def argument_kinds(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the arguments of a class or a function, by name. `**kwargs` of a constructor stand for the
    arguments of its base class; those of a function, for the fields in `Unpack[...]`."""
    kinds: dict[str, Any] = {}
    for owner in target.__mro__ if inspect.isclass(target) else [target]:
        function = vars(owner).get("__init__") if inspect.isclass(owner) else owner
        if function is None or function is object.__init__:
            continue
        hints = get_type_hints(owner if is_dataclass(owner) else function, include_extras=True)
        names = inspect.signature(function).parameters
        kinds = {n: hints[n] for n in names if n in hints} | kinds
        keywords = [n for n, p in names.items() if p.kind is p.VAR_KEYWORD]
        if not keywords:
            break
        if get_origin(keywords_kind := kinds.pop(keywords[0], None)) is Unpack:
            kinds |= get_type_hints(get_args(keywords_kind)[0], include_extras=True)
    return kinds


def require(value: Any, kind: Any, name: str) -> None:
    """Raises `ValueError` for a value of another type. Hydra itself reports a missing mandatory value."""
    if value != MISSING and not accepts(kind, value):
        raise ValueError(f"{name} {value!r} must be {described(kind)}: set {name}=VALUE")


def accepts(kind: Any, value: Any) -> bool:
    """Whether a value of a config has the type `kind`. An object of any class is represented by a config with its
    `_target_`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return accepts(args[0], value) and value >= args[1].least
    if origin in UNIONS:
        return any(accepts(one, value) for one in args)
    if kind in (Any, Text, type(None)):
        return kind is Any or isinstance(value, str if kind is Text else kind)
    if kind in (bool, str):
        return isinstance(value, kind) and value != ""
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool) and math.isfinite(value)
    if (origin or kind) in LISTS:
        return isinstance(value, list) and accepts_items(args, value)
    if (origin or kind) in DICTS:
        key, item = args or (Any, Any)
        return isinstance(value, dict) and all(accepts(key, k) and accepts(item, v) for k, v in value.items())
    return isinstance(value, dict)


def accepts_items(kinds: tuple[Any, ...], values: list[Any]) -> bool:
    """Whether the items of a list have the types of its annotation: one type for all or, for a tuple, one each."""
    item_kinds = kinds if len(kinds) > 1 and Ellipsis not in kinds else (kinds or (Any,))[:1] * len(values)
    return len(item_kinds) == len(values) and all(map(accepts, item_kinds, values))


def described(kind: Any) -> str:
    """A type in words, for error messages."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{described(args[0])} of at least {args[1].least:g}"
    if origin in UNIONS:
        return " or ".join(map(described, args))
    if kind is type(None):
        return "null"
    if (origin or kind) in LISTS:
        return f"a list of {' and '.join(map(described, args))}" if args else "a list"
    if (origin or kind) in DICTS:
        return "a mapping" + (f" to {described(args[1])}" if args and args[1] is not Any else "")
    return WORDS.get(kind) or f"a {getattr(kind, '__name__', kind)}, with its _target_"
