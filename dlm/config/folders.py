"""Where the files lie that are read at run time and are no code: `conf/`, `sweeps/` and the committed report."""

from __future__ import annotations

from pathlib import Path

import dlm

PACKAGE = Path(dlm.__path__[0])


def shipped(name: str) -> Path:
    """A folder of the repository's top level: beside the package in a checkout, inside it where a wheel is installed
    (setup.py puts it there)."""
    inside = PACKAGE / "shipped" / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def config_folders() -> list[Path]:
    """The folders that configs are read from, the first one wins: the user's own `conf/` in the working directory, and
    the one that comes with the package."""
    own = Path.cwd() / "conf"
    return [own, CONF] if own.is_dir() and not own.samefile(CONF) else [CONF]


def sweep_files(name: str) -> list[Path]:
    """The sweeps that a path or a pattern (`sweeps/*.yaml`) names: of the working directory, or, where it has none of
    that name, of those that come with the package."""
    path = Path(name)
    return [path] if path.exists() else sorted(shipped("sweeps").glob(path.name)) or [path]


CONF = shipped("conf")
