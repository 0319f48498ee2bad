"""Where metrics go besides the run's own table: Weights & Biases, unless it is switched off."""

from __future__ import annotations

import netrc
import os
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from dlm.console import is_sweep
from dlm.runs.run import Run

MODES = ("online", "offline", "disabled", "shared")


def loggers(cfg: DictConfig, run: Run) -> list[Logger]:
    """One W&B run per job: its id is the run's, its group the sweep's. Offline where no key is present. What the config
    leaves open, the variables of wandb's own say."""
    found: list[Logger] = []
    if cfg.wandb:
        mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
        if mode not in MODES:
            raise ValueError(f"WANDB_MODE {mode!r} in the environment is unknown: choose one of {', '.join(MODES)}")
        found.append(
            WandbLogger(
                project=cfg.project or os.environ.get("WANDB_PROJECT") or "dlm",
                entity=cfg.entity,
                group=cfg.group or sweep_name(),
                id=run.id,
                name=run.id,
                save_dir=os.environ.get("WANDB_DIR") or str(run.folder),
                mode=mode,
                job_type="train",
                config=run.record["config"],
                settings={"silent": True},
            )
        )
    return found


def close_wandb(cfg: DictConfig, summary: dict[str, float], failed: bool) -> None:
    """End the job's W&B run, so that the next job of a sweep begins its own."""
    if not cfg.wandb:
        return
    import wandb  # slow to import, and only wanted here

    if wandb.run is not None:
        wandb.run.summary.update(summary)
        wandb.finish(exit_code=int(failed))


def sweep_name() -> str | None:
    """The name of the multirun this job belongs to."""
    return Path(HydraConfig.get().sweep.dir).name if is_sweep() else None


def has_wandb_key() -> bool:
    """Whether the environment or ~/.netrc holds a key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Progress(TQDMProgressBar):
    """Steps, ETA, tokens/s and the losses."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)

    def on_train_start(self, trainer, module) -> None:
        super().on_train_start(trainer, module)
        self.began, self.first = time.perf_counter(), module.micro_batches
        self.on_train_epoch_start(trainer, module)  # a run that resumes amid its only epoch gets no such call

    def on_train_epoch_start(self, trainer, module) -> None:
        super().on_train_epoch_start(trainer, module)
        self.train_progress_bar.set_description("training")

    def get_metrics(self, trainer, module) -> dict:
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        rows = trainer.datamodule.batch_size * (module.micro_batches - self.first) * trainer.world_size
        rate = rows * trainer.datamodule.length / (time.perf_counter() - self.began)
        return {"tok/s": f"{rate:.0f}"} | metrics
