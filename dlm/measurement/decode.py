"""Decodes the tasks with one decoder: correct items, forwards, tokens per second."""

from __future__ import annotations

from dlm.data import tasks
from dlm.decoding.base import Decoder
from dlm.evaluation.calibration import nearest, tokens_per_forward
from dlm.evaluation.generation import DEGENERATE, accuracy, run_tasks
from dlm.evaluation.throughput import interleaved
from dlm.measurement.base import Measurement


class Decode(Measurement):
    """Decodes `items_per_family` test items. `model` is `dlm`, at its own or another `block_size`, or `ar`, its parent.

    With `tpf`, the decoder uses the threshold of `thresholds` that comes nearest to that many tokens per forward on
    validation items. With `timed_batch_size`, speed in tokens per second is the median of `repeats` at that batch size.
    """

    def __init__(
        self,
        model: str,
        decoder: Decoder,
        block_size: int | None,
        tpf: float | None,
        thresholds: list[float],
        calibration_per_family: int,
        batch_size: int,
        items_per_family: int,
        max_new_tokens: int,
        timed_batch_size: int | None,
        timed_items_per_family: int,
        repeats: int,
    ):
        if model not in ("dlm", "ar"):
            raise ValueError(f"measurement.model {model!r} is unknown: choose dlm or ar")
        if tpf is not None and not hasattr(decoder.rule, "threshold"):
            raise ValueError(f"measurement.tpf {tpf} is reached through a threshold: choose decoding=threshold")
        if tpf is not None and not thresholds:
            raise ValueError(f"measurement.thresholds is empty: name candidates to reach measurement.tpf {tpf}")
        self.model, self.decoder, self.block_size = model, decoder, block_size
        self.tpf, self.thresholds, self.calibration_per_family = tpf, thresholds, calibration_per_family
        self.batch_size, self.items_per_family, self.max_new_tokens = batch_size, items_per_family, max_new_tokens
        self.timed_batch_size, self.timed_items_per_family = timed_batch_size, timed_items_per_family
        self.repeats = repeats

    def __call__(self, subject):
        """The result: `accuracy, low, high, n, tpf, nfe, tokens_per_row` and the shares of degenerate outputs, over all
        items and in `families`; `items` lists for each item, in the order of the evaluation set, its family, whether it
        is `correct`, its share of `right_steps`, the tokens of its answer (`answer_tokens`, and `tokens` written), its
        `nfe` and `rows`, and whether it is degenerate."""
        denoiser = getattr(subject, self.model) if self.block_size is None else subject.with_block_size(self.block_size)
        reader = subject.converted.reader
        if self.tpf is not None:
            model, decoder, at = (self.model, self.block_size), self.decoder.at(0.0), self.thresholds
            how = (model, decoder, at, self.calibration_per_family, self.max_new_tokens, self.batch_size)
            reached = subject.once(how, lambda: self.calibrate(denoiser, reader, subject.asked))
            self.decoder = self.decoder.at(nearest(reached, self.tpf))
        examples = tasks.evaluation_set("test", self.items_per_family, families=subject.asked)
        results = run_tasks(denoiser, reader, examples, self.decoder, self.max_new_tokens, self.batch_size)
        columns = ["family", "correct", "right_steps", "answer_tokens", "tokens", "nfe", "rows", *DEGENERATE]
        return {
            **accuracy(results),
            "threshold": self.decoder.threshold,
            "block_size": denoiser.pattern.block_size,
            "tokens_per_second": self.time(denoiser, reader, subject.asked),
            "items": results.filter(items=columns).to_dict("list"),
        }

    def calibrate(self, denoiser, reader, families) -> dict[float, float]:
        """The tokens per forward of each threshold, on validation items."""
        return tokens_per_forward(
            denoiser,
            reader,
            self.decoder,
            self.thresholds,
            self.calibration_per_family,
            self.max_new_tokens,
            self.batch_size,
            families,
        )

    def time(self, denoiser, reader, families) -> float | None:
        """Tokens per second at `timed_batch_size`; None without one."""
        if self.timed_batch_size is None:
            return None
        examples = tasks.evaluation_set("test", self.timed_items_per_family, families=families)

        def decode() -> int:
            results = run_tasks(denoiser, reader, examples, self.decoder, self.max_new_tokens, self.timed_batch_size)
            return int(results["tokens"].sum())

        return interleaved({"decoding": decode}, self.repeats, denoiser.model.device)["decoding"]
