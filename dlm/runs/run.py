"""A run's folder: its identity, its status, its record.

    runs/<id>/config.yaml   the resolved config
             run.json       the record: status, config, versions, machine, metrics, error
             metrics.csv    metrics over time            drift.csv    weights against the parent's, tensor by tensor
             trace.json     when each position was committed in decoding
             measurements/  what `dlm.measure` found of it, a file for each measurement and its settings; the policies
                            that `dlm.policy` learned from it
             model/         the converted model, a Hugging Face folder            checkpoint/   what a resume needs
             .lease         who works on it              nonfinite.pt  the batch that stopped it

A run is its config: the id is a hash of the resolved config without what cannot change the result. Records are written
to a temporary name and renamed, so a record is always whole; it holds its own checksum and those of the other files.

`python -m dlm.runs list|show|rm|gc|verify` manages the folder (dlm/runs/__main__.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dlm.runs.digest import FILE_DIGITS, digest
from dlm.runs.redact import redacted
from dlm.runs.renamed import RENAMED, with_targets
from dlm.runs.storage import damaged, digests, read_json, write_atomically, write_json

# Keys that cannot change the weights, by their path in the config. How a run is decoded and evaluated is not who it is:
# a finished run that is asked for with another `evaluation` is evaluated again, not trained again.
# `study` is what sweeps are made from. A `runs_dir`, wherever it stands, says where runs lie and not what they are.
VOLATILE = ("logger", "force", "retry", "runtime", "evaluation", "decoding", "study")
VOLATILE += ("trainer.volatile",)  # the name of `runtime` in the configs of earlier versions
# But for rounding, as with runtime.threads. A compiled run from before 2026-11-27 has it in its id.
VOLATILE += ("trainer.compile",)
# What only watches. A callback of another name may change the training, and is part of who the run is.
VOLATILE += tuple(f"callbacks.{name}" for name in ("self_check", "drift", "progress_bar", "learning_rate"))
# An option added later enters the id only where it is not at the value that keeps the old behaviour, so that runs from
# before it keep their id.
# One that is forgotten here moves the ids in tests/data/run_ids.json, and a test fails.
NEUTRAL: dict[str, Any] = {
    "masking.views": 1,
    "masking.complementary": True,
    "masking.score": "masked",
    "noise_level._target_": "dlm.noise_level.uniform.Uniform",
    "kernel._target_": "dlm.kernel.absorb.Absorb",
    "attention.noise_per": "block",
    "loss.per": "token",
    "loss.scale": 1.0,
    "schedule": None,
    "trainable.targets": "all-linear",
    "trainable.beside": None,
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "trainer.on_nonfinite": "stop",
}

# Of the folder above; a record that does not say is of the first.
LAYOUT = 1

PACKAGES = ("torch", "transformers", "lightning", "hydra-core", "peft", "datasets", "pandas")


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def run_id(config: dict[str, Any]) -> str:
    """The id of a resolved config: 12 hexadecimal digits, the first one a later letter where they would be a number."""
    kept = {
        key: value
        for key, value in flatten(with_targets(config, RENAMED)).items()
        if not is_volatile(key) and not (key in NEUTRAL and value == NEUTRAL[key])
    }
    name = digest(kept)
    if re.fullmatch(r"\d+(e\d+)?", name):  # on a command line it would be read as a number
        name = "ghijklmnop"[int(name[0])] + name[1:]
    return name


def is_volatile(key: str) -> bool:
    """Whether a dotted key cannot change the weights."""
    return key.split(".")[-1] == "runs_dir" or any(key == v or key.startswith(v + ".") for v in VOLATILE)


# What a finished run consists of besides its record.
FILES = ("config.yaml", "metrics.csv", "drift.csv", "items.csv", "trace.json", "model")


def measurement_file(settings: dict[str, Any]) -> str:
    """Where what a measurement with these resolved settings found lies in a run's folder."""
    kind = settings["_target_"].split(".")[-2]
    return f"measurements/{kind}-{digest(settings, FILE_DIGITS)}.json"


class Run:
    """One run's folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.id = folder.name

    @classmethod
    def create(cls, cfg: DictConfig, choices: dict[str, str]) -> Run:
        """The run of a config, its folder made and its record begun where it is new."""
        config = OmegaConf.to_container(cfg, resolve=True)
        run = cls(Path(cfg.runs_dir).expanduser() / run_id(config))
        try:
            if not run.record_path.exists():
                new = cls(aside(run.folder.parent))
                new.folder.mkdir()
                write_atomically(new.folder / "config.yaml", redacted(OmegaConf.to_yaml(cfg, resolve=True)))
                new.update(id=run.id, layout=LAYOUT, status="new", config=config, choices=choices, created=time.time())
                run.folder.mkdir(exist_ok=True)
                with contextlib.suppress(OSError):  # another process was first
                    new.folder.rename(run.folder)  # onto an empty folder: all of it at once
                if not run.record_path.exists():  # what is there lacks a record
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
        """An existing run by its id (or the beginning of it), or by its folder."""
        root = Path(runs_dir).expanduser()
        if (Path(name) / "run.json").exists():
            return cls(Path(name))
        found = sorted(p.parent for p in root.glob(f"{name}*/run.json")) if name else []
        if len(found) != 1:
            known = ", ".join(sorted(p.parent.name for p in root.glob("*/run.json"))[:20]) or "none"
            problem = "does not exist" if not found else "is ambiguous"
            raise ValueError(f"run {name!r} {problem} in {str(root)!r}: choose one of {known}")
        return cls(found[0])

    @classmethod
    def newest(cls, runs_dir: str | Path, **choices: str) -> Run:
        """The run that finished last, of those with these choices (`pretrain="embedded"`)."""
        runs = [cls(path.parent) for path in Path(runs_dir).expanduser().glob("*/run.json")]
        done = [r for r in runs if r.status == "finished" and choices.items() <= r.record["choices"].items()]
        if not done:
            wanted = " ".join(f"{group}={option}" for group, option in choices.items())
            raise ValueError(
                f"runs_dir {str(runs_dir)!r} holds no finished run{' with ' + wanted if wanted else ''}: make one with "
                f"python -m dlm.train {wanted}".rstrip()
            )
        return max(done, key=lambda run: run.record["ended"])

    @property
    def record_path(self) -> Path:
        return self.folder / "run.json"

    @property
    def record(self) -> dict[str, Any]:
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
        """The config as it was asked for. Local files have absolute paths (dlm/config/inputs.py), so that they are
        found from any working directory."""
        config = OmegaConf.load(self.folder / "config.yaml")
        inputs = self.record.get("inputs", {}) if self.record_path.exists() else {}
        for option, found in inputs.items():
            if Path(found["path"]).exists():
                OmegaConf.update(config, option, found["path"])
        return config

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint" / "last.ckpt"

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    @property
    def nonfinite(self) -> Path:
        """The batch that stopped the run."""
        return self.folder / "nonfinite.pt"

    def leavings(self) -> list[Path]:
        """What processes that were killed left half written."""
        return [path for folder in (self.folder, self.checkpoint.parent) for path in folder.glob(".*.tmp")]

    def require_space(self, num_bytes: int) -> None:
        """`ValueError` where the disk has less than `num_bytes` free."""
        free = shutil.disk_usage(self.folder).free
        if free < num_bytes:
            raise ValueError(
                f"runs_dir {str(self.folder.parent)!r} has {free / 1e9:.1g} GB free, but this run needs about "
                f"{num_bytes / 1e9:.1g} GB: free space or choose another with runs_dir=FOLDER"
            )

    def update(self, **values: Any) -> None:
        """Merge `values` into the record and write it whole."""
        record = self.record if self.record_path.exists() else {}
        write_json(self.record_path, record | json.loads(redacted(json.dumps(values))))

    def seal(self, *names: str) -> None:
        """Put the checksums of files into the record: of those named (a folder is all its files), or of all."""
        chosen = [self.folder / name for name in names or FILES]
        paths = [path for p in chosen for path in (p.rglob("*") if p.is_dir() else [p])]
        self.update(files=self.record.get("files", {}) | digests(self.folder, paths))

    def damaged(self, name: str = "") -> list[str]:
        """Those of its sealed files that are missing or have changed, of a folder or of all."""
        sealed = self.record.get("files", {})
        return damaged(self.folder, {path: digest for path, digest in sealed.items() if path.startswith(name)})

    def trained_model(self) -> Path:
        """The folder of the converted model; `ValueError` where it is not there or not what was written."""
        if not self.model_folder.exists():
            raise ValueError(
                f"run {self.id} is {self.status} and has no model: finish it with the command that began it"
            )
        if found := self.damaged("model/"):
            raise ValueError(
                f"run {self.id} is damaged: {', '.join(str(self.folder / name) for name in found)} is not what was "
                "written. Restore it from a copy, or train the run again with force=true"
            )
        return self.model_folder


def headline(record: dict[str, Any]) -> dict[str, float]:
    """The few numbers of a record that a summary shows."""
    train = record.get("train", {})
    found = {"val NELBO": train.get("val/nelbo_final", train.get("val/nelbo"))}
    for g in (record.get("evaluation") or {}).get("dlm", {}).get("generation", []):
        found |= {f"accuracy, {g['name']}": g["accuracy"], f"TPF, {g['name']}": g["tpf"]}
    found["drift ffn"] = record.get("drift", {}).get("ffn/relative")
    return {name: value for name, value in found.items() if value is not None}


def aside(runs_dir: Path) -> Path:
    """A new name in the folder of runs under which nothing is a run yet, or any more."""
    folder = runs_dir / ".tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / uuid.uuid4().hex[:12]


def environment() -> dict[str, Any]:
    """Versions, commit and machine, for the record."""
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "commit": git_commit(),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "processor": platform.processor()},
    }


def git_commit() -> str | None:
    """The commit of the code, with a + where the tree has changes; None outside a repository."""
    root = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, timeout=10)  # noqa: S603, S607
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
