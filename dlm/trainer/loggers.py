"""The loggers of a run, beside its own metric table: those that `logger` names, by default Weights & Biases."""

from __future__ import annotations

import inspect
import netrc
import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from dlm.config.build import make
from dlm.console import is_sweep
from dlm.runs.run import Run

MODES = ("online", "offline", "disabled", "shared")


def loggers(nodes: DictConfig | None, run: Run) -> list[Logger]:
    """The loggers of a run, one per node of the config. A logger that accepts `save_dir`, `id`, `name` or `config` and
    whose node does not set it receives the run's folder, id, id and config. Raises `ValueError` for a node that names
    no class."""
    of_run = {"save_dir": str(run.folder), "id": run.id, "name": run.id, "config": run.record["config"]}
    created = []
    for key, node in (nodes or {}).items():
        if not OmegaConf.is_dict(node) or "_target_" not in node:
            raise ValueError(f"logger.{key} {node!r} must be a node with a _target_: see conf/logger/wandb.yaml")
        # Partial, so that the run's config is passed as a plain value and not instantiated.
        logger = make(node, _partial_=True)
        accepted = inspect.signature(logger.func).parameters
        created.append(
            logger(**{name: value for name, value in of_run.items() if name in accepted and name not in node})
        )
    return created


def weights_and_biases(
    save_dir: str,
    id: str,
    name: str,
    config: dict[str, Any],
    project: str | None,
    entity: str | None,
    group: str | None,
) -> WandbLogger:
    """One W&B run per job: its id is that of the run, its group that of the sweep. It is offline if there is no API
    key. wandb's environment variables fill in what the config leaves open; an unknown WANDB_MODE is a `ValueError`."""
    mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
    if mode not in MODES:
        raise ValueError(f"WANDB_MODE {mode!r} in the environment is unknown: choose one of {', '.join(MODES)}")
    return WandbLogger(
        project=project or os.environ.get("WANDB_PROJECT") or "dlm",
        entity=entity,
        group=group or sweep_name(),
        id=id,
        name=name,
        save_dir=os.environ.get("WANDB_DIR") or save_dir,
        mode=mode,
        job_type="train",
        config=config,
        settings={"silent": True},
    )


def close_wandb(run_id: str, summary: dict[str, float], failed: bool) -> None:
    """End the job's W&B run, so that the next job of a sweep starts its own."""
    wandb = sys.modules.get("wandb")  # not imported here, because that is slow: a job that logs to it has done so
    if wandb is not None and wandb.run is not None and wandb.run.id == run_id:
        wandb.run.summary.update(summary)
        wandb.finish(exit_code=int(failed))


def sweep_name() -> str | None:
    """The name of the sweep this job belongs to; None outside a sweep."""
    return Path(HydraConfig.get().sweep.dir).name if is_sweep() else None


def has_wandb_key() -> bool:
    """Whether the environment or ~/.netrc holds a W&B API key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
