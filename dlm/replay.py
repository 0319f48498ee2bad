"""Compute the batch again that stopped a run: `python -m dlm.replay run=ID`. Says where the first number that is not
finite comes from, module by module in the order in which they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from dlm.config.build import Experiment, build
from dlm.config.command_line import hydra_command
from dlm.config.kinds import require_kinds
from dlm.config.settings import Replay
from dlm.conversion.pieces import loss_of
from dlm.runs.run import Run
from dlm.types import Movable, Prepared


def replay(run: Run) -> dict[str, Any]:
    """`step`; `loss` of every micro-batch; `modules` and `gradients` whose numbers are not finite, in order."""
    if not run.nonfinite.exists():
        raise ValueError(f"run {run.id} holds no batch to replay: it was not stopped by numbers that are not finite")
    experiment = build(run.config)
    kept = load(run.nonfinite)
    experiment.parent.model.load_state_dict(kept["weights"])
    experiment.conversion.train()
    modules: list[str] = []
    hooks = [
        m.register_forward_hook(watch(name, modules)) for name, m in experiment.parent.model.named_modules() if name
    ]
    losses = [gradient_of(experiment, batch) for batch in kept["batches"]]
    for hook in hooks:
        hook.remove()
    bad = [n for n, p in experiment.parent.model.named_parameters() if p.grad is not None and not is_finite(p.grad)]
    return {"step": kept["step"], "loss": losses, "modules": list(dict.fromkeys(modules)), "gradients": bad}


def load(path: Path) -> dict[str, Any]:
    """The batch that `dlm.trainer.finite` kept: tensors and dataclasses of tensors, nothing else. The dataclasses of
    auxiliary losses are known once these losses are imported."""
    with torch.serialization.safe_globals(Movable.__subclasses__()):
        return torch.load(path, map_location="cpu", weights_only=True)


def gradient_of(experiment: Experiment, batch: list[Prepared]) -> float:
    """The loss of a micro-batch, its gradient added to the others."""
    loss = loss_of(experiment.conversion.objective, experiment.denoiser, batch)[0].loss
    loss.backward()
    return loss.item()


def watch(name: str, found: list[str]):
    """A hook that notes a module whose output is not finite."""

    def hook(module, args, output) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, torch.Tensor) and not is_finite(tensor):
            found.append(name)

    return hook


def is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


@hydra_command("replay")
def main(cfg: DictConfig) -> None:
    require_kinds(cfg, Replay)
    found = replay(Run.load(str(cfg.run), cfg.runs_dir))
    table = Table(title=f"step {found['step']}, loss {', '.join(f'{loss:.4g}' for loss in found['loss'])}")
    table.add_column("modules whose output is not finite")
    table.add_column("tensors whose gradient is not finite")
    table.add_row("\n".join(found["modules"]) or "none", "\n".join(found["gradients"]) or "none")
    Console().print(table)


if __name__ == "__main__":
    main()
