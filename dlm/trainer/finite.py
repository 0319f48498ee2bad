"""A step whose loss or gradient is not finite changes no weight. Either it stops the run, which then reports the step
and the tensors and saves the batch (`python -m dlm.replay` computes it again), or the step is skipped and counted.

On a GPU no step waits for this check: the flags stay on the device until those of `poll` steps are read together, and
the fused optimizer itself leaves the weights alone (`found_inf`, which gradient scaling uses).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Callback

from dlm.model.sharding import local, whole
from dlm.trainer.processes import all_gather

LOSS = "the loss"


class NotFinite(ValueError):
    """A loss, gradient or weight is not finite."""


def skips_nonfinite(on_nonfinite: str) -> bool:
    """Whether steps that are not finite are skipped; `ValueError` unless `on_nonfinite` is stop or skip."""
    if on_nonfinite not in ("stop", "skip"):
        raise ValueError(f"trainer.on_nonfinite {on_nonfinite!r} is unknown: choose stop or skip")
    return on_nonfinite == "skip"


class FiniteGuard(Callback):
    """Checks the loss and the gradients of every step, and the weights of every checkpoint and of the result. `skipped`
    lists the skipped steps. A batch that stops the run is written to `path`. Raises `NotFinite` unless `skip`."""

    def __init__(self, skip: bool, poll: int, path: Path):
        self.skip, self.poll, self.path = skip, poll, path
        self.skipped: list[int] = []

    def on_train_start(self, trainer, module) -> None:
        self.step = trainer.global_step
        self.batches: list[Any] = []  # the micro-batches of the current step
        self.losses: list[torch.Tensor] = []  # their losses
        self.unchecked: list[tuple[int, list[Any], torch.Tensor]] = []  # steps, their micro-batches and their flags
        self.names = [name for name, p in module.denoiser.model.named_parameters() if p.requires_grad]
        if module.device.type == "cpu":
            self.poll = 1

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.batches.append(batch)

    def on_before_backward(self, trainer, module, loss) -> None:
        self.losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        """Sets `self.flags` [1 + number of trainable tensors]: whether the loss and each gradient is not finite."""
        parameters = [p for p in module.denoiser.model.parameters() if p.requires_grad]
        norms = dict(zip((p for p in parameters if p.grad is not None), norms_of(parameters), strict=True))
        zero = torch.zeros((), device=module.device)
        values = [torch.stack(self.losses).sum(), *(norms.get(p, zero).float() for p in parameters)]
        flags = ~torch.isfinite(torch.stack([value.float() for value in values]))
        # The loss differs between processes, but all of them have to skip the step.
        self.flags = trainer.strategy.reduce(flags.float(), reduce_op="max") > 0
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = self.flags.any().float()
        elif self.flags.any():
            optimizer.zero_grad(set_to_none=True)  # the optimizer ignores parameters without a gradient

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        self.unchecked.append((self.step - 1, self.batches, self.flags))
        self.batches, self.losses = [], []
        if self.step % self.poll == 0:
            self.check_steps(module)

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        self.check_weights(module)

    def on_train_end(self, trainer, module) -> None:
        self.check_weights(module)

    def check_steps(self, module) -> None:
        """Read the flags of all unchecked steps: skip those that are not finite, or stop at the first of them."""
        unchecked, self.unchecked = self.unchecked, []
        if not unchecked:
            return
        flags = torch.stack([flags for *_, flags in unchecked]).cpu()
        for (step, batches, _), step_flags in zip(unchecked, flags, strict=True):
            if not step_flags.any():
                continue
            if self.skip:
                self.skipped.append(step)
                print(f"step {step} left out: its loss or gradient is not finite")
                continue
            loss_flag, *gradient_flags = step_flags.tolist()
            bad = [LOSS] * loss_flag + [n for n, flag in zip(self.names, gradient_flags, strict=True) if flag]
            self.save_batch(step, batches, bad, module)
            raise NotFinite(
                f"step {step}: {first_few(bad)} not finite. No weight was changed by it. To compute it again: python "
                f"-m dlm.replay run={self.path.parent.name}. Lower lr, or leave such steps out: "
                "trainer.on_nonfinite=skip"
            )

    def check_weights(self, module) -> None:
        """Raises `NotFinite` before weights that are not finite are written."""
        self.check_steps(module)
        parameters = module.denoiser.model.named_parameters()
        state = {name: local(weight) for name, weight in parameters if weight.is_floating_point()}  # not in four bits
        finite = torch.isfinite(torch.stack([norm.float() for norm in torch._foreach_norm([*state.values()])]))
        flags = module.trainer.strategy.reduce(
            (~finite).float(), reduce_op="max"
        ).cpu()  # of the parts of all processes
        if flags.any():
            bad = [name for name, flag in zip(state, flags.tolist(), strict=True) if flag]
            raise NotFinite(
                f"after step {self.step - 1} the weights {first_few(bad)} are not finite, and are not written: the "
                "last checkpoint is from before. Lower lr"
            )

    def save_batch(self, step: int, batches: list[Any], bad: list[str], module) -> None:
        """Write the input of `dlm.replay`: the micro-batches of all processes and the weights."""
        ours = [[piece.to("cpu") for piece in batch] for batch in batches]
        gathered = [batch for of_process in all_gather(ours) for batch in of_process]
        weights = {name: whole(weight) for name, weight in module.denoiser.model.state_dict().items()}
        if module.trainer.is_global_zero:
            contents = {"step": step, "what": bad, "batches": gathered}
            torch.save(contents | {"weights": weights}, self.path)
        module.trainer.strategy.barrier()  # Lightning kills the first process soon after another one has failed

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


def norms_of(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The norm of the gradient of every parameter that has one, from one fused call."""
    # `torch.nn.utils.get_total_norm`, the public function around this one, returns a single number, which does not tell
    # which tensor is bad; calling it per tensor would launch a kernel for each.
    return list(torch._foreach_norm([local(p.grad) for p in parameters if p.grad is not None]))


def first_few(names: list[str]) -> str:
    """The first three names, and how many follow."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
