"""One training step without the optimizer: ours, the naive one, and the parent's own autoregressive one.

All arms have the same weights, tokens, noise and masks. Ours and naive compute the same loss. AR computes the parent's
loss on the same tokens, as the cost of a step without diffusion. The naive arm builds its attention mask in every step;
ours builds it once for batches of the same layout, as in training. A peer, if there is one, computes the same loss as
ours in its own process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from rich.table import Table
from torch import Tensor

from dlm.bench import naive
from dlm.bench.base import Bench, Workbench, require_at_least, require_divides, use
from dlm.bench.gate import TOLERANCE, Step, require_same_step
from dlm.bench.memory import in_a_fresh_process, measurable, peak_resident
from dlm.bench.peer import DLLM, Dllm
from dlm.bench.train_tables import AGAIN, AR, NAIVE, OURS, counts_table, times_table
from dlm.conversion.prepare import prepare
from dlm.evaluation.timing import Arm, Elsewhere, interleaved, ratio, spread
from dlm.loss.nelbo import Nelbo
from dlm.model import flops
from dlm.model.denoiser import Denoiser
from dlm.types import Batch, Prepared, generator


@dataclass(frozen=True)
class Case:
    """The batch in the form that each arm reads, on the device: `prepared` for ours; `x0`, `masked` and `weight`, with
    one row per view (BV rows), for naive; `clean` for AR."""

    denoiser: Denoiser
    batch: Batch
    prepared: Prepared
    x0: Int[Tensor, "BV L"]
    masked: Bool[Tensor, "BV L"]
    weight: Float[Tensor, "BV L"]
    clean: Int[Tensor, "B L"]


class Train(Bench):
    """`batch_size` rows of `length` random tokens, in blocks of `block_size`. With `memory`, the peak memory of each
    arm is measured on a CPU, too, in a process that does nothing else."""

    def __init__(self, length: int, batch_size: int, block_size: int, memory: bool):
        require_at_least(2, length=length)
        require_at_least(1, batch_size=batch_size)
        require_divides(block_size, length=length)
        self.length, self.batch_size, self.block_size = length, batch_size, block_size
        self.memory = memory and measurable()

    def run(self, bench: Workbench) -> dict[str, Any]:
        bench.check_positions(self.length, "length")
        bench.model.train()
        case = self.case(bench)
        losses = self.losses(bench, case)
        with bench.gate():
            peer_step, peer_rows = self.peer_step(bench, case)
            error = gate(bench, losses, peer_step)
        arms = {name: self.arm(bench, name, loss) for name, loss in losses.items()}
        counts = {name: self.counts(bench, case, name, arm) for name, arm in arms.items() if name != AGAIN}
        if bench.peer:
            counts[DLLM] = self.peer_counts(bench, case, peer_rows)
            self.load(bench.peer, bench, case)
            arms[DLLM] = Elsewhere(bench.peer.step)
        times = interleaved(arms, bench.repeats, bench.warmup, bench.clock)
        times |= interleaved(
            {"prepare": Arm(lambda: self.prepare(bench, case.denoiser, case.batch))}, bench.repeats, 1, bench.clock
        )
        tokens = self.batch_size * self.length
        return {
            "settings": {"length": self.length, "batch_size": self.batch_size, "block_size": self.block_size},
            "gate": {"max_relative_error": error, "tolerance": TOLERANCE[bench.gate_dtype]},
            "masked_tokens": int(case.masked.sum()),
            "seconds": times,
            "summary": {name: spread(values) for name, values in times.items()},
            "tokens_per_second": {n: tokens / spread(times[n])["median"] for n in arms},
            "time_over_ours": {n: ratio(times[n], times[OURS]) for n in arms},
            "time_over_ar": {n: ratio(times[n], times[AR]) for n in arms},
            "counts": counts,
            "useful_mfu": useful_mfu(bench, counts, times),
        }

    def case(self, bench: Workbench) -> Case:
        """The batch with its noise, in the form that each arm reads."""
        x0 = bench.ids(self.batch_size, self.length)
        position = torch.arange(self.length).expand_as(x0).contiguous()
        batch = Batch(x0, torch.ones_like(x0, dtype=torch.bool), torch.zeros_like(x0), position)
        denoiser = bench.denoiser(self.block_size)
        if bench.compile:  # for all arms: they share the model's layers
            denoiser.compile(few_shapes=bench.device.type != "cpu")
        prepared = self.prepare(bench, denoiser, batch)
        scorable = denoiser.scorable(batch)  # the noise of `prepared` again, before it was laid out
        units = denoiser.pattern.units(scorable)
        noised = bench.masking(scorable, units, bench.parent.mask_id, generator(bench.seed))
        # The views of a row share its clean stream. The naive arm and the peer cannot, so each view becomes a row.
        masked, weight = (t.view(-1, self.length).to(bench.device) for t in (noised.masked, noised.weight))
        clean = x0.to(bench.device)
        rows = clean.repeat_interleave(prepared.views, 0)
        return Case(denoiser, batch, prepared.to(bench.device), rows, masked, weight, clean)

    def prepare(self, bench: Workbench, denoiser: Denoiser, batch: Batch) -> Prepared:
        """The work of the CPU before a step: draw the noise, drop positions that no loss depends on."""
        return prepare(denoiser, bench.masking, batch, generator(bench.seed))

    def losses(self, bench: Workbench, case: Case) -> dict[str, Callable[[], Float[Tensor, ""]]]:
        """The forward and the loss of every arm."""
        parent, prepared = bench.parent, case.prepared

        def ours() -> Float[Tensor, ""]:
            return case.denoiser.loss(prepared.inputs, prepared.scored, Nelbo(), prepared.num_tokens).loss

        def naive_loss() -> Float[Tensor, ""]:
            noised = (case.x0, case.masked, case.weight, parent.mask_id)
            return naive.diffusion_loss(parent.model, parent.layer_types, *noised, self.block_size, bench.token_shift)

        return {OURS: ours, NAIVE: naive_loss, AR: lambda: naive.ar_loss(parent.model, case.clean), AGAIN: ours}

    def arm(self, bench: Workbench, name: str, loss: Callable[[], Tensor]) -> Arm:
        """Forward and backward of an arm."""
        return Arm(lambda: loss().backward(), lambda: set_up(bench, name))

    def counts(self, bench: Workbench, case: Case, name: str, arm: Arm) -> dict[str, Any]:
        """Work and memory of one step: rows, logits, FLOP executed and useful, peak bytes."""
        rows: dict[str, int] = {"network": 0, "head": 0}
        model, on_cuda = bench.model, bench.device.type == "cuda"
        # Our compiled attention kernel is invisible to the counter, and would run uncompiled under it.
        attention_is_hidden = on_cuda and name == OURS and bench.attention != bench.plain_attention
        vocabulary = model.get_output_embeddings().weight.shape[0]

        def count(where: str, rows_of: Callable[[Any, Any], int]) -> Callable[..., None]:
            def hook(module: Any, args: Any, output: Tensor) -> None:
                rows[where] += rows_of(args, output)

            return hook

        hooks = [
            model.get_input_embeddings().register_forward_hook(count("network", lambda args, _: args[0].numel())),
            model.get_output_embeddings().register_forward_hook(
                count("head", lambda _, output: output.numel() // vocabulary)
            ),
        ]
        try:
            arm.setup()
            if attention_is_hidden:
                use(model, bench.plain_attention)
            with torch.compiler.set_stance("force_eager"):  # compiled operations cannot be counted
                executed = flops.executed(arm.run)
        finally:
            for hook in hooks:
                hook.remove()
        return {
            "rows_network": rows["network"],
            "rows_head": rows["head"],
            "logits_bytes": rows["head"] * vocabulary * bench.dtype.itemsize,
            "flop_executed": executed | {"attention": None} if attention_is_hidden else executed,
            "flop_useful": self.useful(bench, case, name),
            "peak_bytes": self.peak(bench, name, arm),
        }

    def peak(self, bench: Workbench, name: str, arm: Arm) -> int | None:
        """Peak memory of one step in bytes, weights included: allocated on a GPU, or resident in a process that does
        nothing else. None if it is not measured."""
        if bench.device.type == "cuda":
            return peak_bytes(arm)
        return in_a_fresh_process(peak_in_this_process, bench.rebuild, self, name) if self.memory else None

    def load(self, peer: Dllm, bench: Workbench, case: Case) -> None:
        """Send the model, in its current precision, and the batch to a peer."""
        peer.load(bench.model, bench.parent.mask_id)
        peer.train_on(case.x0, case.masked, case.weight, self.block_size)

    def peer_step(self, bench: Workbench, case: Case) -> tuple[Step | None, dict[str, int]]:
        """The peer's loss and gradients, and the number of rows that its `network` and `head` compute; (None, {})
        without a peer."""
        if not bench.peer:
            return None, {}
        self.load(bench.peer, bench, case)
        return bench.peer.gradients()

    def peer_counts(self, bench: Workbench, case: Case, rows: dict[str, int]) -> dict[str, Any]:
        """Work and memory of the peer's step."""
        peak = None
        if self.memory or bench.device.type == "cuda":
            with bench.peer.another() as peer:
                self.load(peer, bench, case)
                peak = peer.peak()
        vocabulary = bench.model.get_output_embeddings().weight.shape[0]
        return {
            "rows_network": rows["network"],
            "rows_head": rows["head"],
            "logits_bytes": rows["head"] * vocabulary * bench.dtype.itemsize,
            "flop_executed": None,
            "flop_useful": self.useful(bench, case, DLLM),
            "peak_bytes": peak,
        }

    def useful(self, bench: Workbench, case: Case, name: str) -> int | None:
        """The FLOP that the arm's task needs, whatever it executes; None if there is no closed form."""
        shape = flops.Shape.of(bench.model)
        windows = [w for w in bench.parent.layer_types.values() if w is not None]
        if shape is None or any(w < self.length for w in windows):
            return None
        if name == AR:
            rows = case.clean.numel()
            return flops.plain_step(shape, rows, rows * (self.length + 1) // 2, rows)
        views = case.masked.cpu().unflatten(0, (-1, case.prepared.views))
        return flops.diffusion_step(shape, flops.needed(views, self.block_size, bench.token_shift))

    def tables(self, result: dict[str, Any]) -> list[Table]:
        return [times_table(result), counts_table(result)]


def set_up(bench: Workbench, name: str) -> None:
    """Clear the gradients and select the arm's attention: our kernel may not take the dense masks of the others."""
    bench.model.zero_grad(set_to_none=True)
    use(bench.model, bench.attention if name in (OURS, AGAIN) else bench.plain_attention)


def peak_in_this_process(rebuild: Callable[[], Workbench], task: Train, name: str) -> int:
    """The peak resident memory of an arm's step in bytes, for a process that has allocated nothing yet."""
    bench = rebuild()
    bench.model.train()
    arm = task.arm(bench, name, task.losses(bench, task.case(bench))[name])
    arm.setup()
    return peak_resident(arm.run)


def gate(bench: Workbench, losses: dict[str, Callable[[], Tensor]], peer: Step | None = None) -> float:
    """The largest relative error between ours, naive and a peer; `GateError` if losses or gradients differ. Ours are
    kept on the CPU, since two sets of gradients may not fit on the device, and compared there one by one."""
    ours = {n: t.to("cpu", copy=True) for n, t in step(bench, OURS, losses[OURS]).items()}
    errors = [require_same_step(ours, step(bench, NAIVE, losses[NAIVE]), TOLERANCE[bench.gate_dtype], NAIVE)]
    bench.model.zero_grad(set_to_none=True)
    if peer:
        errors.append(require_same_step(ours, peer, TOLERANCE[bench.gate_dtype], DLLM))
    return max(errors)


def step(bench: Workbench, name: str, loss: Callable[[], Tensor]) -> Step:
    """The loss and all gradients of one step, which the model holds until the next."""
    set_up(bench, name)
    value = loss()
    value.backward()
    return {"loss": value.detach()} | {n: p.grad for n, p in bench.model.named_parameters() if p.grad is not None}


def peak_bytes(arm: Arm) -> int:
    """The largest number of bytes allocated on the device during one step, weights included."""
    arm.setup()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    arm.run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def useful_mfu(bench: Workbench, counts: dict[str, Any], times: dict[str, list[float]]) -> dict[str, float]:
    """Useful FLOP/s as a fraction of the machine's peak, by arm; {} without a peak or a closed form."""
    return {
        name: work["flop_useful"] / spread(times[name])["median"] / (bench.peak_tflops * 1e12)
        for name, work in counts.items()
        if bench.peak_tflops and work["flop_useful"]
    }
