"""Recompute the batch that stopped a run: `python -m dlm.replay run=ID`. Lists the modules whose output is not finite,
in the order of their forwards, so the first one is where the problem arises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from dlm.attention.base import AttentionPattern, BlockAnchor, NoisePer
from dlm.config.build import Experiment, build
from dlm.config.command_line import hydra_command
from dlm.config.kinds import require_options
from dlm.config.settings import Replay
from dlm.conversion.pieces import loss_of
from dlm.runs.run import Run
from dlm.types import Movable, Prepared


def replay(run: Run) -> dict[str, Any]:
    """Recompute a run's saved batch. Returns `step`, the `loss` of every micro-batch, and the names of the `modules`
    and `gradients` that are not finite, in order. Raises `ValueError` if the run saved no batch."""
    if not run.nonfinite.exists():
        raise ValueError(f"run {run.id} holds no batch to replay: it was not stopped by numbers that are not finite")
    experiment = build(run.config)
    if experiment.trainable.quantises:
        raise ValueError(f"run {run.id} has weights in four bits, which are not replayed: try trainable=lora")
    saved = load(run.nonfinite)
    experiment.parent.model.load_state_dict(saved["weights"])
    experiment.conversion.train()
    nonfinite_modules: list[str] = []
    hooks = [
        m.register_forward_hook(recording_hook(name, nonfinite_modules))
        for name, m in experiment.parent.model.named_modules()
        if name
    ]
    losses = [accumulate_gradient(experiment, batch) for batch in saved["batches"]]
    for hook in hooks:
        hook.remove()
    bad = [n for n, p in experiment.parent.model.named_parameters() if p.grad is not None and not is_finite(p.grad)]
    return {"step": saved["step"], "loss": losses, "modules": list(dict.fromkeys(nonfinite_modules)), "gradients": bad}


def load(path: Path) -> dict[str, Any]:
    """The batch saved by `dlm.trainer.finite`: tensors, dataclasses of tensors and an attention pattern. Only classes
    that are imported are accepted: the classes of auxiliary losses and patterns are, once the run is built."""
    with torch.serialization.safe_globals([*subclasses(Movable), *subclasses(AttentionPattern), BlockAnchor, NoisePer]):
        return torch.load(path, map_location="cpu", weights_only=True)


def subclasses(base: type) -> list[type]:
    """The imported subclasses of a class, at any depth."""
    return [each for child in base.__subclasses__() for each in (child, *subclasses(child))]


def accumulate_gradient(experiment: Experiment, batch: list[Prepared]) -> float:
    """Add the gradient of a micro-batch to the model's, and return its loss."""
    loss = loss_of(experiment.conversion.objective, experiment.denoiser, batch)[0].loss
    loss.backward()
    return loss.item()


def recording_hook(name: str, nonfinite_modules: list[str]) -> Callable[..., None]:
    """A forward hook that appends `name` to `nonfinite_modules` if the module's output is not finite."""

    def hook(module, args, output) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, torch.Tensor) and not is_finite(tensor):
            nonfinite_modules.append(name)

    return hook


def is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


@hydra_command("replay")
def main(cfg: DictConfig) -> None:
    require_options(cfg, "replay", Replay)
    report = replay(Run.load(str(cfg.run), cfg.runs_dir))
    table = Table(title=f"step {report['step']}, loss {', '.join(f'{loss:.4g}' for loss in report['loss'])}")
    table.add_column("modules whose output is not finite")
    table.add_column("tensors whose gradient is not finite")
    table.add_row("\n".join(report["modules"]) or "none", "\n".join(report["gradients"]) or "none")
    Console().print(table)


if __name__ == "__main__":
    main()
