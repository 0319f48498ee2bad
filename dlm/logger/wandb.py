"""Weights & Biases: one W&B run per run, with its id. It is offline where there is no API key."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import rank_zero_experiment

from dlm.logger.base import RunLogger

MODES = ("online", "offline", "disabled", "shared")
STEP = "trainer/global_step"


class Wandb(RunLogger):
    """wandb's environment variables fill in what the config leaves open (null). `model=True` sends the converted model
    as an artifact. Raises `ValueError` for an unknown WANDB_MODE."""

    def __init__(
        self,
        save_dir: str,
        id: str,
        config: dict[str, Any],
        group: str | None,
        tags: list[str],
        project: str | None,
        entity: str | None,
        model: bool,
    ):
        super().__init__(project_of(project), id)
        self.mode, self.model, self.run = mode(), model, None
        self.settings = {
            "project": self.project,
            "entity": entity,
            "id": id,
            "name": id,
            "resume": "allow",
            "group": group or os.environ.get("WANDB_RUN_GROUP"),
            "tags": tags,
            "config": config,
            "dir": os.environ.get("WANDB_DIR") or save_dir,
            "mode": self.mode,
            "job_type": "train",
            # A progress bar would make every second record of an offline run one of the console.
            "settings": {"silent": True} | ({"console": "off"} if self.mode == "offline" else {}),
        }

    @property
    @rank_zero_experiment
    def experiment(self):
        """The run of wandb, opened on first use."""
        import wandb  # takes a second, and only those who log there wait for it

        if self.run is None:
            self.run = wandb.init(**self.settings)
            self.run.define_metric("tokens")
            self.run.define_metric("*", step_metric="tokens", step_sync=True)
            if self.mode == "online":
                print(f"W&B: {self.run.url}")
        return self.run

    def send(self, metrics, step):
        self.experiment.log(metrics if step is None else metrics | {STEP: step})

    def log_summary(self, values: Mapping[str, float]) -> None:
        self.experiment.summary.update(dict(values))

    def log_table(self, name, rows):
        import wandb

        self.log_metrics({name: wandb.Table(dataframe=rows, allow_mixed_types=True)})

    def log_picture(self, name, picture, step):
        import wandb

        self.log_metrics({name: wandb.Image(picture)}, step)

    def log_model(self, folder: Path) -> None:
        if self.model:
            import wandb

            artifact = wandb.Artifact(f"model-{self.id}", type="model")
            artifact.add_dir(str(folder))
            self.experiment.log_artifact(artifact)

    def close(self, failed):
        if self.run is not None:
            self.run.finish(exit_code=int(failed))
            self.run = None


def project_of(project: str | None) -> str:
    """The project that a config names, else that of the environment."""
    return project or os.environ.get("WANDB_PROJECT") or "dlm"


def mode() -> str:
    """What WANDB_MODE says, else online where there is a key. Raises `ValueError` for an unknown mode."""
    asked = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    if asked not in MODES:
        raise ValueError(f"WANDB_MODE {asked!r} in the environment is unknown: choose one of {', '.join(MODES)}")
    return asked


def has_key() -> bool:
    """Whether the environment or ~/.netrc holds a W&B API key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
