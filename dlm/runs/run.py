"""A run's folder: its identity, its status, its record.

    runs/<id>/config.yaml   the resolved config
             run.json       the record: status, config, versions, machine, metrics, error
             metrics.csv    metrics over time            drift.csv    drift of every tensor from the parent
             trace.json     the steps at which each position of a block is committed in decoding
             measurements/  results of `dlm.measure`, one file per measurement and its settings; policies learned by
                            `dlm.policy`
             benchmarks/    answers to lm-evaluation-harness, their cost and their scores (`dlm.evaluate tasks=…`)
             model/         the converted model, a Hugging Face folder            checkpoint/   for resuming
             .lease         the process that works on it               nonfinite.pt  the batch that stopped it

A run is identified by its config (dlm/runs/identity.py). Records are written to a temporary name and renamed, so they
are never half written; a record holds its own checksum and those of the other files.

`python -m dlm.runs list|show|rm|gc|verify` manages the folder (dlm/runs/__main__.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dlm.runs.digest import FILE_DIGITS, digest
from dlm.runs.identity import run_id
from dlm.runs.redact import redacted
from dlm.runs.storage import damaged, digests, read_json, write_atomically, write_json

# The version of the folder layout above. A record without a version has layout 1.
LAYOUT = 1

PACKAGES = ("torch", "transformers", "lightning", "hydra-core", "peft", "datasets", "pandas")


# The files and folders of a finished run, besides its record, whose checksums the record holds.
FILES = ("config.yaml", "metrics.csv", "drift.csv", "items.csv", "trace.json", "model")


def measurement_file(settings: dict[str, Any]) -> str:
    """The path, within a run's folder, of the result of a measurement with these resolved settings."""
    kind = settings["_target_"].split(".")[-2]
    return f"measurements/{kind}-{digest(settings, FILE_DIGITS)}.json"


class Run:
    """One run's folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.id = folder.name

    @classmethod
    def create(cls, cfg: DictConfig, choices: dict[str, str]) -> Run:
        """The run of a config; a new one gets its folder and record. `ValueError` if `runs_dir` cannot be written."""
        config = OmegaConf.to_container(cfg, resolve=True)
        run = cls(Path(cfg.runs_dir).expanduser() / run_id(config))
        try:
            if not run.record_path.exists():
                new = cls(temporary_folder(run.folder.parent))
                new.folder.mkdir()
                write_atomically(new.folder / "config.yaml", redacted(OmegaConf.to_yaml(cfg, resolve=True)))
                new.update(id=run.id, layout=LAYOUT, status="new", config=config, choices=choices, created=time.time())
                run.folder.mkdir(exist_ok=True)
                with contextlib.suppress(OSError):  # another process was faster, or files without a record are there
                    new.folder.rename(run.folder)  # atomic, since the target is an empty folder
                if not run.record_path.exists():
                    for path in (new.folder / "config.yaml", new.record_path):
                        path.replace(run.folder / path.name)
                shutil.rmtree(new.folder, ignore_errors=True)
        except OSError as error:
            raise ValueError(
                f"runs_dir {str(run.folder.parent)!r} cannot be written ({error.strerror}): free space or choose "
                "another with runs_dir=FOLDER"
            ) from error
        return run

    @classmethod
    def load(cls, name: str, runs_dir: str | Path) -> Run:
        """The run of an id, a unique beginning of it, or a folder. Raises `ValueError` if there is not exactly one."""
        root = Path(runs_dir).expanduser()
        if (Path(name) / "run.json").exists():
            return cls(Path(name))
        matches = sorted(p.parent for p in root.glob(f"{name}*/run.json")) if name else []
        if len(matches) != 1:
            known = ", ".join(sorted(p.parent.name for p in root.glob("*/run.json"))[:20]) or "none"
            problem = "does not exist" if not matches else "is ambiguous"
            raise ValueError(f"run {name!r} {problem} in {str(root)!r}: choose one of {known}")
        return cls(matches[0])

    @classmethod
    def newest(cls, runs_dir: str | Path, of_sweeps: bool = True, **choices: str) -> Run:
        """The last finished run with these choices (`pretrain="embedded"`), or the last that was made by itself and not
        in a sweep. Raises `ValueError` if there is none."""
        runs = [cls(path.parent) for path in Path(runs_dir).expanduser().glob("*/run.json")]
        finished = [r for r in runs if r.status == "finished" and choices.items() <= r.record["choices"].items()]
        finished = [r for r in finished if of_sweeps or not r.record.get("sweeps")]
        if not finished:
            options = " ".join(f"{group}={option}" for group, option in choices.items())
            raise ValueError(
                f"runs_dir {str(runs_dir)!r} holds no finished run{' with ' + options if options else ''}: make one "
                f"with python -m dlm.train {options}".rstrip()
            )
        return max(finished, key=lambda run: run.record.get("ended", 0.0))

    @property
    def record_path(self) -> Path:
        return self.folder / "run.json"

    @property
    def record(self) -> dict[str, Any]:
        """The contents of `run.json`. Raises `ValueError` if it is damaged or of another layout."""
        try:
            record = read_json(self.record_path)
        except ValueError as error:
            raise ValueError(
                f"the record {self.record_path} is damaged ({error}): delete the run's folder (python -m dlm.runs rm "
                f"{self.id}) and train it again"
            ) from error
        layout = record.get("layout", LAYOUT)
        if layout != LAYOUT:
            raise ValueError(
                f"run {self.id} in {str(self.folder.parent)!r} was written in layout {layout} of the runs folder, and "
                f"this version of dlm reads layout {LAYOUT}: use the version that wrote it, or another runs_dir=FOLDER"
            )
        return record

    @property
    def status(self) -> str:
        return self.record["status"] if self.record_path.exists() else "new"

    @property
    def config(self) -> DictConfig:
        """The resolved config. Local files get the absolute paths from the record (dlm/config/inputs.py), so the config
        works from any working directory."""
        config = OmegaConf.load(self.folder / "config.yaml")
        inputs = self.record.get("inputs", {}) if self.record_path.exists() else {}
        for option, recorded in inputs.items():
            if Path(recorded["path"]).exists():
                OmegaConf.update(config, option, recorded["path"])
        return config

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint" / "last.ckpt"

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    @property
    def nonfinite(self) -> Path:
        """The file of the batch whose loss or gradient was not finite."""
        return self.folder / "nonfinite.pt"

    def temporary_files(self) -> list[Path]:
        """Half-written files and folders of killed processes."""
        return [path for folder in (self.folder, self.checkpoint.parent) for path in folder.glob(".*.tmp")]

    def require_space(self, num_bytes: int) -> None:
        """Raises `ValueError` if the disk has less than `num_bytes` free."""
        free = shutil.disk_usage(self.folder).free
        if free < num_bytes:
            raise ValueError(
                f"runs_dir {str(self.folder.parent)!r} has {free / 1e9:.1g} GB free, but this run needs about "
                f"{num_bytes / 1e9:.1g} GB: free space or choose another with runs_dir=FOLDER"
            )

    def update(self, **values: Any) -> None:
        """Merge `values` into the record and write it atomically."""
        record = self.record if self.record_path.exists() else {}
        write_json(self.record_path, record | json.loads(redacted(json.dumps(values))))

    def seal(self, *names: str) -> None:
        """Record the checksums of the files `names` (of a folder, all its files), by default those of `FILES`."""
        sources = [self.folder / name for name in names or FILES]
        paths = [path for p in sources for path in (p.rglob("*") if p.is_dir() else [p])]
        self.update(files=self.record.get("files", {}) | digests(self.folder, paths))

    def damaged(self, prefix: str = "") -> list[str]:
        """The sealed files, with paths that begin with `prefix`, that are missing or have changed."""
        sealed = self.record.get("files", {})
        return damaged(self.folder, {path: digest for path, digest in sealed.items() if path.startswith(prefix)})

    def trained_model(self) -> Path:
        """The folder of the converted model. Raises `ValueError` if it is missing or fails its checksums."""
        if not self.model_folder.exists():
            raise ValueError(
                f"run {self.id} is {self.status} and has no model: finish it with the command that began it"
            )
        if changed := self.damaged("model/"):
            raise ValueError(
                f"run {self.id} is damaged: {', '.join(str(self.folder / name) for name in changed)} is not what was "
                "written. Restore it from a copy, or train the run again with force=true"
            )
        return self.model_folder


def headline(record: dict[str, Any]) -> dict[str, float]:
    """The metrics of a record for a summary: NELBO in nats, accuracy in [0, 1], tokens per forward, relative drift."""
    train = record.get("train", {})
    metrics = {"val NELBO": train.get("val/nelbo_final", train.get("val/nelbo"))}
    for g in (record.get("evaluation") or {}).get("dlm", {}).get("generation", []):
        metrics |= {f"accuracy, {g['name']}": g["accuracy"], f"TPF, {g['name']}": g["tpf"]}
    metrics["drift ffn"] = record.get("drift", {}).get("ffn/relative")
    return {name: value for name, value in metrics.items() if value is not None}


def temporary_folder(runs_dir: Path) -> Path:
    """An unused path in `.tmp`, for a run that is being created or removed and is not listed as a run."""
    folder = runs_dir / ".tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / uuid.uuid4().hex[:12]


def environment(device: str) -> dict[str, Any]:
    """Versions, commit and machine, for the record. `device` names where the models compute."""
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "commit": git_commit(),
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "processor": platform.processor(),
            "device": device,
        },
    }


def git_commit() -> str | None:
    """The commit of the code, with a + if the working tree has changes; None outside a repository."""
    root = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            result = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, timeout=10)  # noqa: S603, S607
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
