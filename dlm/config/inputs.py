"""What a run reads from outside, and whether it is still what was read.

A run is its config, and a config names files without holding them. So the record says of every local file, folder and
other run that the config names where it was found and a fingerprint of what it held (`inputs`). What comes from a hub
is named by its id and revision.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dlm.model.parent import PACKAGE_PREFIX, resolve
from dlm.runs import digest
from dlm.runs.run import VOLATILE, Run

FILES = ("path", "tokenizer", "policy")  # arguments that name a file, a folder or what a hub has
MODEL_FILES = (".safetensors", ".gguf", ".json", ".model", ".txt", ".jinja", ".py")  # what of a model's folder is read


def inputs_of(cfg: DictConfig) -> dict[str, dict[str, str]]:
    """By option: the absolute `path` of what a config names on this machine, and its `fingerprint`. What lies in a
    package keeps its name."""
    found = {}
    for option, value, where in located(OmegaConf.to_container(cfg, resolve=True), ""):
        content = Run(where).model_folder if (where / "run.json").exists() else where
        path = value if value.startswith(PACKAGE_PREFIX) else str(where.absolute())
        found[option] = {"path": path, "fingerprint": fingerprint(content)}
    return found


def located(node: Any, name: str) -> Iterator[tuple[str, str, Path]]:
    """`(option, its value, where that lies)` of everything that a plain config names and that is there: an argument of
    `FILES`, a `trace` or a `run` in a folder of runs."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        full = f"{name}.{key}" if name else key
        yield from located(value, full)
        if "_target_" not in node or not isinstance(value, str | int):
            continue
        where, value = None, str(value)
        if key in FILES:
            where = Path(resolve(value) if value.startswith(PACKAGE_PREFIX) else value).expanduser()
        elif key in ("run", "trace") and "runs_dir" in node:
            root = Path(node["runs_dir"]).expanduser()
            where = root / value if key == "trace" else folder_of(value, root)
        if where is not None and where.exists():
            yield full, value, where


def folder_of(name: str, runs_dir: Path) -> Path | None:
    """The folder of a run by its name, or None: that there is none is said by whoever wants its model."""
    try:
        return Run.load(name, runs_dir).folder
    except ValueError:
        return None


def fingerprint(path: Path) -> str:
    """16 hexadecimal digits of what a file holds, or of the files of a model's folder that are read."""
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix in MODEL_FILES and p.is_file())
    names = ["" if file == path else file.name for file in files]
    return digest.fingerprint(f"{n} {hash_of(f, f.stat())} ".encode() for n, f in zip(names, files, strict=True))


def hash_of(file: Path, status: os.stat_result) -> str:
    """The SHA-256 of a file, computed once for as long as its size and time stay as they are."""
    return cached_checksum(file.absolute(), status.st_size, status.st_mtime_ns)


@cache
def cached_checksum(file: Path, size: int, changed: int) -> str:
    return digest.checksum(file)


def require_same(run: Run, cfg: DictConfig, *groups: str) -> None:
    """`ValueError` where an option of a config (`groups`: of these alone) names something else than what the run read.
    What the record of an earlier run does not say, or is no longer there, cannot be compared."""
    read, now = run.record.get("inputs", {}), inputs_of(cfg)
    for option in sorted(read.keys() & now.keys()):
        group = option.partition(".")[0]
        if group in VOLATILE or (groups and group not in groups):
            continue
        before, found = read[option], now[option]
        if before["fingerprint"] != found["fingerprint"]:
            raise ValueError(
                f"run {run.id} read {option} {before['path']!r} with fingerprint {before['fingerprint']}, and "
                f"{found['path']!r} has {found['fingerprint']} now: bring the old content back, give the new content "
                f"a name of its own ({option}=...), or train the run again with force=true"
            )


def require_fingerprint(began: str, read: str | None, source: str, found: str) -> None:
    """`ValueError` where what a run `began` with had another fingerprint than what is found; None is not compared."""
    if read not in (None, found):
        raise ValueError(
            f"{began} of fingerprint {read}, and {source!r} has {found} now: bring the old one back (a hub keeps it as "
            "a revision), or begin again with force=true"
        )
