"""Paths of the data files read at run time: `conf/`, `sweeps/` and the committed report."""

from __future__ import annotations

from pathlib import Path

import dlm

PACKAGE = Path(dlm.__path__[0])


def shipped(name: str) -> Path:
    """A folder of the repository's top level: beside the package in a checkout, inside it in an installed wheel
    (setup.py puts it there)."""
    inside = PACKAGE / "shipped" / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def config_folders() -> list[Path]:
    """The config folders in order of precedence: the user's `conf/` in the working directory, then the package's."""
    local = Path.cwd() / "conf"
    return [local, CONF] if local.is_dir() and not local.samefile(CONF) else [CONF]


def sweep_files(name: str) -> list[Path]:
    """The sweep files that a path or a pattern (`sweeps/*.yaml`) names: the file of that path, else the package's
    sweeps of that name."""
    path = Path(name)
    return [path] if path.exists() else sorted(shipped("sweeps").glob(path.name)) or [path]


CONF = shipped("conf")
