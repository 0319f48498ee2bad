"""A step whose loss or gradient is not finite changes no weight. It stops the run with the step, the tensors and the
batch (`python -m dlm.replay` computes it again), or is left out and counted.

On a GPU nothing waits for this: the flags stay on the device until `poll` steps are looked at together, and the fused
optimizer leaves the weights alone by itself (`found_inf`, which gradient scaling uses).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Callback

from dlm.trainer.processes import of_all_processes

LOSS = "the loss"


class NotFinite(ValueError):
    """A number that training cannot go on from."""


class FiniteGuard(Callback):
    """Watches loss and gradients of every step, and the weights of every checkpoint and of the result. `skipped` are
    the steps that were left out. A batch that stops the run is written to `path`."""

    def __init__(self, skip: bool, poll: int, path: Path):
        self.skip, self.poll, self.path = skip, poll, path
        self.skipped: list[int] = []

    def on_train_start(self, trainer, module) -> None:
        self.step = trainer.global_step
        self.batches: list[Any] = []  # of the step that is being made
        self.losses: list[torch.Tensor] = []
        self.unseen: list[tuple[int, list[Any], torch.Tensor]] = []  # steps, their batches and their flags
        self.names = [name for name, p in module.denoiser.model.named_parameters() if p.requires_grad]
        if module.device.type == "cpu":
            self.poll = 1

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.batches.append(batch)

    def on_before_backward(self, trainer, module, loss) -> None:
        self.losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        """`self.flags`: of the loss and of every trainable tensor's gradient, whether it is not finite."""
        parameters = [p for p in module.denoiser.model.parameters() if p.requires_grad]
        norms = dict(zip((p for p in parameters if p.grad is not None), norms_of(parameters), strict=True))
        zero = torch.zeros((), device=module.device)
        values = [torch.stack(self.losses).sum(), *(norms.get(p, zero).float() for p in parameters)]
        flags = ~torch.isfinite(torch.stack([value.float() for value in values]))
        # A loss is that of one process, and all of them have to leave the step out.
        self.flags = trainer.strategy.reduce(flags.float(), reduce_op="max") > 0
        if all(group["fused"] for group in optimizer.param_groups):
            optimizer.found_inf = self.flags.any().float()
        elif self.flags.any():
            optimizer.zero_grad(set_to_none=True)  # without a gradient it leaves a weight alone

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        self.unseen.append((self.step - 1, self.batches, self.flags))
        self.batches, self.losses = [], []
        if self.step % self.poll == 0:
            self.look(module)

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        self.check_weights(module)

    def on_train_end(self, trainer, module) -> None:
        self.check_weights(module)

    def look(self, module) -> None:
        """Judge the steps that nobody has looked at."""
        unseen, self.unseen = self.unseen, []
        if not unseen:
            return
        flags = torch.stack([flags for *_, flags in unseen]).cpu()
        for (step, batches, _), row in zip(unseen, flags, strict=True):
            if not row.any():
                continue
            if self.skip:
                self.skipped.append(step)
                print(f"step {step} left out: its loss or gradient is not finite")
                continue
            what = [LOSS] * bool(row[0]) + [n for n, bad in zip(self.names, row[1:].tolist(), strict=True) if bad]
            self.keep(step, batches, what, module)
            raise NotFinite(
                f"step {step}: {some(what)} not finite. No weight was changed by it. To compute it again: python -m "
                f"dlm.replay run={self.path.parent.name}. Lower lr, or leave such steps out: trainer.on_nonfinite=skip"
            )

    def check_weights(self, module) -> None:
        self.look(module)
        state = dict(module.denoiser.model.named_parameters())
        finite = torch.isfinite(torch.stack([norm.float() for norm in torch._foreach_norm([*state.values()])])).cpu()
        if not finite.all():
            bad = [name for name, is_finite in zip(state, finite.tolist(), strict=True) if not is_finite]
            raise NotFinite(
                f"after step {self.step - 1} the weights {some(bad)} are not finite, and are not written: the last "
                "checkpoint is from before. Lower lr"
            )

    def keep(self, step: int, batches: list[Any], what: list[str], module) -> None:
        """What `dlm.replay` needs: the micro-batches of all processes."""
        own = [[piece.to("cpu") for piece in batch] for batch in batches]
        kept = {"step": step, "what": what, "batches": [batch for other in of_all_processes(own) for batch in other]}
        if module.trainer.is_global_zero:
            torch.save(kept | {"weights": module.denoiser.model.state_dict()}, self.path)
        module.trainer.strategy.barrier()  # Lightning kills the first process soon after another one has ended badly

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


def norms_of(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The norm of every gradient that is there, all at once."""
    # `torch.nn.utils.get_total_norm`, the public way to this function, makes one number of them, which cannot say which
    # tensor is bad; called for each it would be one kernel a tensor.
    return list(torch._foreach_norm([p.grad for p in parameters if p.grad is not None]))


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
