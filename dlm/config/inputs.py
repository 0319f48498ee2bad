"""Records the external inputs of a run and detects whether they have changed.

A run is identified by its config, which names files but does not hold their contents. The record therefore lists, under
`inputs`, the path and a fingerprint of every local file, folder and other run that the config names. Inputs from a hub
are identified by id and revision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dlm.data.origin import Origin
from dlm.model.parent import PACKAGE_PREFIX, resolve
from dlm.runs import digest
from dlm.runs.identity import VOLATILE
from dlm.runs.run import Run

FILES = ("path", "tokenizer", "policy")  # arguments that name a file, a folder or a hub id
MODEL_FILES = (".safetensors", ".gguf", ".json", ".model", ".txt", ".jinja", ".py")  # files of a model that are read


def inputs_of(cfg: DictConfig) -> dict[str, dict[str, str]]:
    """The local inputs of a config by option: their absolute `path` and their `fingerprint`. Inputs within a package
    keep their `pkg://` name as path."""
    inputs, config = {}, OmegaConf.to_container(cfg, resolve=True)
    for option, path, files in data_files(config.get("data"), "data"):
        inputs[option] = {"path": path, "fingerprint": of_files(files, [file.name for file in files])}
    for option, value, location in local_inputs(config, ""):
        content = Run(location).model_folder if (location / "run.json").exists() else location
        path = value if value.startswith(PACKAGE_PREFIX) else str(location.absolute())
        inputs[option] = {"path": path, "fingerprint": fingerprint(content)}
    return inputs


def local_inputs(node: Any, name: str) -> Iterator[tuple[str, str, Path]]:
    """`(option, value, path)` of every existing file or folder that a plain config names: an argument of `FILES`, or a
    `trace` or `run` in a folder of runs. `name` is the path of `node` in the config."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        full = f"{name}.{key}" if name else key
        yield from local_inputs(value, full)
        if "_target_" not in node or not isinstance(value, str | int):
            continue
        location, value = None, str(value)
        if key in FILES:
            location = Path(resolve(value) if value.startswith(PACKAGE_PREFIX) else value).expanduser()
        elif key in ("run", "trace") and "runs_dir" in node:
            root = Path(node["runs_dir"]).expanduser()
            location = root / value if key == "trace" else run_folder(value, root)
        is_data = name.partition(".")[0] == "data" and key == "path"  # a folder or a file of it: see `data_files`
        if location is not None and (location.is_file() if is_data else location.exists()):
            yield full, value, location


def data_files(node: Any, name: str) -> Iterator[tuple[str, str, list[Path]]]:
    """`(option, path, files)` of every `path` and `template` in the config of the data, but for a single file beside a
    `_target_`, which `local_inputs` gives. What does not exist is reported by the code that reads it."""
    for key, value in node.items() if isinstance(node, dict) else ():
        full, is_text = f"{name}.{key}", isinstance(value, str)
        yield from data_files(value, full)
        if key not in ("path", "template") or not value:
            continue
        is_file = is_text and Path(value).expanduser().is_file()
        if (key == "template" and not is_file) or (key == "path" and is_file and "_target_" in node):
            continue
        with contextlib.suppress(ValueError):
            if files := Origin(value, option=full).local:
                yield full, str(Path(value).expanduser().absolute() if is_text else value), files


def run_folder(name: str, runs_dir: Path) -> Path | None:
    """The folder of a run, or None if there is none: the code that loads its model reports that."""
    try:
        return Run.load(name, runs_dir).folder
    except ValueError:
        return None


def fingerprint(path: Path) -> str:
    """16 hexadecimal digits of the contents of a file, or of the `MODEL_FILES` in a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix in MODEL_FILES and p.is_file())
    return of_files(files, ["" if file == path else file.name for file in files])


def of_files(files: list[Path], names: list[str]) -> str:
    """16 hexadecimal digits of the contents and the names of files."""
    return digest.fingerprint(f"{n} {digest.kept_checksum(f)} ".encode() for n, f in zip(names, files, strict=True))


def require_same(run: Run, cfg: DictConfig, *groups: str) -> None:
    """Raises `ValueError` if an input of a config (only in `groups`, if given) differs from the one that the run read.
    Inputs that the record does not list, or that no longer exist, are not compared."""
    recorded_inputs, present_inputs = run.record.get("inputs", {}), inputs_of(cfg)
    for option in sorted(recorded_inputs.keys() & present_inputs.keys()):
        group = option.partition(".")[0]
        if group in VOLATILE or (groups and group not in groups):
            continue
        recorded, present = recorded_inputs[option], present_inputs[option]
        if recorded["fingerprint"] != present["fingerprint"]:
            raise ValueError(
                f"run {run.id} read {option} {recorded['path']!r} with fingerprint {recorded['fingerprint']}, and "
                f"{present['path']!r} has {present['fingerprint']} now: bring the old content back, give the new "
                f"content a name of its own ({option}=...), or train the run again with force=true"
            )


def require_fingerprint(began: str, recorded: str | None, source: str, present: str) -> None:
    """Raises `ValueError` if the `recorded` fingerprint differs from the `present` one of `source`; None is not
    compared. `began` begins the message: `run X began with a parent`."""
    if recorded not in (None, present):
        raise ValueError(
            f"{began} of fingerprint {recorded}, and {source!r} has {present} now: bring the old one back (a hub keeps "
            "it as a revision), or begin again with force=true"
        )
