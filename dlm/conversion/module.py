"""The conversion as a LightningModule: masking → attention → denoiser → objective → metrics.

Masks are drawn on the CPU before the batch moves to the device, by this process or ahead of it by those that load data,
so a step never waits for the host. Only a rollout, which runs the model itself, does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning
import torch
from jaxtyping import Float
from torch import Tensor

from dlm.block_schedule.base import BlockSchedule
from dlm.conversion.objective import Objective
from dlm.conversion.pieces import lay_out_pieces, loss_of, rows_of_piece
from dlm.conversion.preparation import Ahead, Parcel, Preparation
from dlm.conversion.prepare import corrupt
from dlm.conversion.schedule import Schedules
from dlm.loss.nelbo import Nelbo
from dlm.masking.base import Masking
from dlm.masking.uniform import Uniform
from dlm.model.deferred import Deferred
from dlm.model.denoiser import Denoiser
from dlm.model.sharding import average, clip_grad_norm, gather, is_sharded, shard
from dlm.optimizer.base import WithCosine
from dlm.rollout.base import Rollout
from dlm.trainable.quantised import is_quantised, without_quantised
from dlm.types import Batch, Prepared, generator

BOUND = Objective(Nelbo())
VAL_SEED = 0  # of the noise of validation


class Conversion(lightning.LightningModule):
    """Trains a denoiser. The noise of micro-batch i is a pure function of (seed, rank, i), so a resumed run draws the
    noise of the uninterrupted one.

    Validation is on one set of rows with one draw of noise, whatever the run's seed, pattern, block size and batches
    (`ValidationRows`), and always with uniform masking. Of prose it is an upper bound of the negative log-likelihood.
    Of answers it is the any-order cross-entropy given a fill that is partly hidden and never scored: without the terms
    of the fill no strict bound. With blocks of one token and the shift there is no fill, and an untouched parent has
    its negative log-likelihood.

    `schedules` and `block_schedule` set numbers and the block size by training progress; validation uses the final
    block size.

    A micro-batch is computed in `pieces`, one after the other; memory holds one piece at a time.

    Logs `train/loss` (the minimised loss), `train/nelbo` (nats per maskable token), `train/<name>` of every auxiliary
    loss, `tokens`, and what `ValidationRows.metrics` gives as `val/nelbo`, `val/bits_per_byte`, `val/nelbo_answers`, ….
    """

    def __init__(
        self,
        denoiser: Denoiser,
        masking: Masking,
        objective: Objective,
        optimizer: WithCosine,
        seed: int,
        rollout: Rollout | None = None,
        schedules: Schedules | None = None,
        block_schedule: BlockSchedule | None = None,
    ):
        super().__init__()
        self.denoiser, self.masking, self.objective, self.optimizer_builder = denoiser, masking, objective, optimizer
        self.rollout, self.schedules, self.block_schedule = rollout, schedules, block_schedule
        self.seed = seed
        self.val_masking = Uniform(count="ceil", t_min=0.0)
        self.micro_batches, self.pieces = 0, 1
        self.deferred: Deferred | None = None  # the weights of layers that are empty
        self.seldom_read: list[torch.nn.Parameter] = []  # those of a model with shards that some steps do not read
        self.reference: Path | None = None  # the file of the parent's weights, for callbacks that compare
        # Sees every micro-batch of training and the negative log-likelihoods of its scored tokens, for a callback.
        self.watch: Callable[[list[Prepared], Float[Tensor, " N"]], None] | None = None

    @property
    def strict_loading(self) -> bool:
        """Whether a checkpoint has all weights: not those in four bits."""
        return not any(is_quantised(parameter) for parameter in self.parameters())

    @property
    def num_micro_batches(self) -> int:
        """How many micro-batches every process trains on."""
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    @property
    def preparation(self) -> Preparation:
        """How a batch of training is prepared."""
        schedules = self.schedules, self.block_schedule
        return Preparation(
            self.denoiser, self.masking, self.objective, self.seed, self.pieces, self.rollout, *schedules
        )

    @property
    def ahead(self) -> Ahead | None:
        """The same for a process that loads data; None with a rollout, which runs the model."""
        return None if self.rollout else Ahead(self.preparation, self.num_micro_batches, self.global_rank)

    def on_before_batch_transfer(self, batch: Batch | Parcel, dataloader_idx: int) -> list[Prepared]:
        """Corrupt a batch of B rows on the CPU and lay it out, in at most `pieces` pieces, unless that was done
        ahead."""
        if not self.trainer.training:
            batch = self.denoiser.scorable(batch)
            noised = corrupt(self.denoiser, self.val_masking, batch, generator(VAL_SEED))
            rows = rows_of_piece(self.trainer.datamodule.batch_size, self.pieces)
            return lay_out_pieces(self.denoiser, batch, noised, BOUND, -(-len(batch.x0) // rows))
        number, of = self.micro_batches, self.num_micro_batches
        self.micro_batches += 1
        if not isinstance(batch, Parcel):
            return self.preparation(batch, number, of, self.global_rank)
        if self.schedules:  # those of the step itself
            self.schedules(number / of)
        return batch.pieces

    def transfer_batch_to_device(
        self, batch: list[Prepared], device: torch.device, dataloader_idx: int
    ) -> list[Prepared]:
        return [piece.to(device, non_blocking=True) for piece in batch]

    def training_step(self, batch: list[Prepared], batch_idx: int) -> Tensor:
        """The loss of a micro-batch, a scalar: the mean over its B·L tokens."""
        output, auxiliary = loss_of(self.objective, self.denoiser, batch)
        weight = torch.cat([piece.scored.weight for piece in batch])
        nelbo = (output.nll * weight).sum() / max(sum(piece.num_maskable for piece in batch), 1)
        if self.watch:
            self.watch(batch, output.nll)
        self.log("train/loss", output.loss.detach())
        self.log("train/nelbo", nelbo, prog_bar=True)
        for name, value in auxiliary.items():
            self.log(f"train/{name}", value)
        batch_tokens = sum(piece.num_tokens // piece.views for piece in batch)
        self.log("tokens", float(self.micro_batches * batch_tokens * self.trainer.world_size))
        return output.loss

    def on_validation_epoch_start(self) -> None:
        self.val_nats: list[Float[Tensor, " R"]] = []  # of every piece, the sums over its rows

    def validation_step(self, batch: list[Prepared], batch_idx: int) -> None:
        for piece in batch:
            nll = self.denoiser.loss(piece.inputs, piece.scored, Nelbo(), piece.num_tokens).nll
            terms, length = (nll * piece.scored.weight).double().cpu(), self.trainer.datamodule.length
            sums = torch.zeros(piece.num_tokens // length, dtype=torch.float64)
            self.val_nats.append(sums.index_add_(0, piece.scored.index.cpu() // length, terms))

    def on_validation_epoch_end(self) -> None:
        # Every process validates all rows and obtains the same values.
        for name, value in self.val_metrics().items():
            self.log(name, value, prog_bar=name == "val/nelbo", sync_dist=True)

    def val_metrics(self) -> dict[str, float]:
        """The metrics of the last validation."""
        metrics = self.trainer.datamodule.validation_rows.metrics(torch.cat(self.val_nats))
        return {f"val/{name}": value for name, value in metrics.items()}

    def configure_model(self) -> None:
        """Shard the layers, and fill those that are empty, if the strategy has a mesh of processes
        (`ModelParallelStrategy`)."""
        mesh = getattr(self, "_device_mesh", None)
        if mesh is not None and not is_sharded(self.denoiser.model):
            self.seldom_read = shard(self.denoiser.model, mesh["data_parallel"])
            if self.deferred:
                self.deferred.fill(self.denoiser.model)

    def on_after_backward(self) -> None:
        if self.seldom_read:
            average(self.seldom_read, self._device_mesh["data_parallel"])

    def on_fit_end(self) -> None:
        gather(self.denoiser.model, self.global_rank == 0)

    def configure_optimizers(self):
        # Not `estimated_stepping_batches`, which begins to iterate over the data: before the checkpoint of a run with
        # shards says where it goes on.
        return self.optimizer_builder.build(self.denoiser, self.trainer.max_steps)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        # Lightning refuses to clip with fused optimizers under mixed precision because float16 scales its loss;
        # bfloat16 does not.
        if gradient_clip_val:
            norm = clip_grad_norm(self.denoiser.parameters(), gradient_clip_val)
            self.log("train/grad_norm", norm)

    def on_save_checkpoint(self, checkpoint) -> None:
        checkpoint["micro_batches"] = self.micro_batches
        checkpoint["sharded"] = is_sharded(self.denoiser.model)
        checkpoint["state_dict"] = without_quantised(checkpoint["state_dict"], self)

    def on_load_checkpoint(self, checkpoint) -> None:
        self.micro_batches = checkpoint["micro_batches"]
