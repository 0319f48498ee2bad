"""Where metrics go besides the run's own table: what `logger` says, Weights & Biases unless it is switched off."""

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
    """The loggers of a run, each from its node in the config. One that takes them and is not given others is given the
    run's folder (`save_dir`), its id (`id`, `name`) and its config."""
    own = {"save_dir": str(run.folder), "id": run.id, "name": run.id, "config": run.record["config"]}
    found = []
    for key, node in (nodes or {}).items():
        if not OmegaConf.is_dict(node) or "_target_" not in node:
            raise ValueError(f"logger.{key} {node!r} must be a node with a _target_: see conf/logger/wandb.yaml")
        logger = make(node, _partial_=True)  # what it is given below is no node
        takes = inspect.signature(logger.func).parameters
        found.append(logger(**{name: value for name, value in own.items() if name in takes and name not in node}))
    return found


def weights_and_biases(
    save_dir: str,
    id: str,
    name: str,
    config: dict[str, Any],
    project: str | None,
    entity: str | None,
    group: str | None,
) -> WandbLogger:
    """One W&B run per job: its id is the run's, its group the sweep's. Offline where no key is present. wandb's own
    variables say what the config leaves open."""
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
    """End the job's W&B run, so that the next job of a sweep begins its own."""
    wandb = sys.modules.get("wandb")  # slow to import, and there where a run was begun
    if wandb is not None and wandb.run is not None and wandb.run.id == run_id:
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
