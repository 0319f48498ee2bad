"""The loggers of a run: those that `logger` names, by default Weights & Biases, and what they are told of the run."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dlm.config.build import make
from dlm.config.multirun import SWEEP
from dlm.console import is_sweep
from dlm.logger.base import Plain, RunLogger
from dlm.runs.identity import is_volatile
from dlm.runs.run import Run

TAGS = ("recipe", "scale")  # groups whose options are tags
UNSENT = ("logger", "callbacks", "trainer")  # groups whose options say how, and not what


def loggers(nodes: DictConfig | Mapping[str, Any] | None, run: Run) -> list[RunLogger]:
    """The loggers of a run, one per node of the config. A logger that accepts `save_dir`, `id`, `name`, `config` or
    `group`, and whose node leaves it open, receives the run's folder, id, id, `sent_config`, and its first sweep; one
    that accepts `tags` receives those of the run with those of the node. Raises `ValueError` for a node that names no
    class, or a logger whose package is not installed."""
    record = run.record
    sweeps = record.get("sweeps", [])
    of_run = {"save_dir": str(run.folder), "id": run.id, "name": run.id, "config": sent_config(record)}
    of_run |= {"group": sweeps[0] if sweeps else None, "tags": tags(record["choices"], sweeps)}
    created = []
    for key, node in (nodes or {}).items():
        if not isinstance(node, Mapping | DictConfig) or "_target_" not in node:
            raise ValueError(f"logger.{key} {node!r} must be a node with a _target_: see conf/logger/wandb.yaml")
        # Partial, so that the run's config is passed as a plain value and not instantiated.
        logger = make(node, _partial_=True)
        accepted = inspect.signature(logger.func).parameters
        given = {name: of for name, of in of_run.items() if name in accepted and node.get(name) is None}
        if "tags" in accepted:
            given["tags"] = [*of_run["tags"], *(node.get("tags") or ())]
        try:
            opened = logger(**given)
        except ModuleNotFoundError as error:
            raise ValueError(f"logger={key} needs a package that is not there: pip install 'dlm[{key}]'") from error
        created.append(opened if isinstance(opened, RunLogger) else Plain(opened))
        created[-1].tokens = record.get("tokens", 0)
    return created


@contextmanager
def logging_to(nodes: DictConfig | Mapping[str, Any] | None, run: Run) -> Iterator[list[RunLogger]]:
    """A context with the loggers of a run. On leaving, what they opened is closed."""
    opened, failed = loggers(nodes, run), True
    try:
        yield opened
        failed = False
    finally:
        for logger in opened:
            logger.close(failed)


def logging_again(run: Run, nodes: DictConfig | None = None) -> AbstractContextManager[list[RunLogger]]:
    """A context with loggers that add to a finished run: `nodes`, or those that it was trained with (None)."""
    return logging_to(run.record.get("logger") if nodes is None else nodes, run)


def logged(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """What the record of a run keeps of a training's config for later loggers: their nodes, and the names of the sweeps
    that the run is of: those of `runtime.sweeps`, else of this multirun, else those that it was begun in."""
    nodes = OmegaConf.to_container(cfg.logger, resolve=True) if cfg.get("logger") else {}
    sweeps = cfg.runtime.get("sweeps") or list(filter(None, [sweep_name()])) or run.record.get("sweeps", [])
    return {"logger": nodes, "sweeps": list(sweeps)}


def sweep_name() -> str | None:
    """The name of the sweep this job belongs to, which is the same when it is started again; None outside a sweep."""
    if not is_sweep():
        return None
    return json.loads(os.environ.get(SWEEP) or "{}").get("name") or Path(HydraConfig.get().sweep.dir).name


def tags(choices: Mapping[str, Any], sweeps: list[str]) -> list[str]:
    return [f"{group}={choices[group]}" for group in TAGS if choices.get(group)] + sweeps


def sent_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a logger is told of a run's config: the option of every group under the group's name (`attention: block`),
    the values that are in no group (`lr`), and the values of the groups under `options`. Without what cannot change the
    weights, and of an absolute path only the last part."""
    kept = without_paths({k: v for k, v in record["config"].items() if not is_volatile(k) and k not in UNSENT})
    options = {key: value for key, value in kept.items() if isinstance(value, dict)}
    values = {key: value for key, value in kept.items() if key not in options}
    choices = {group: option or "none" for group, option in record["choices"].items() if group not in UNSENT}
    return values | choices | {"options": options}


def without_paths(value: Any) -> Any:
    """A plain config in which an absolute path is only its last part."""
    if isinstance(value, dict):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_paths(part) for part in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value
