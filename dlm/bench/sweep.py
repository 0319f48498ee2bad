"""Training and decoding over a grid of lengths and block sizes, in one table."""

from __future__ import annotations

import itertools
from typing import Any

from rich.table import Table

from dlm.bench import decode, train
from dlm.bench.base import Bench, Workbench, require_some
from dlm.evaluation.timing import with_range


class Sweep(Bench):
    """For every pair of `lengths` and `block_sizes`: a training step of `batch_size` rows of that length, and decoding
    of `new_tokens` after prompts of that length, in batches of `decode_batch_size`, `tokens_per_step` per step."""

    def __init__(
        self,
        lengths: list[int],
        block_sizes: list[int],
        batch_size: int,
        new_tokens: int,
        decode_batch_size: int,
        tokens_per_step: int,
    ):
        require_some(lengths=lengths, block_sizes=block_sizes)
        self.points = [
            (
                train.Train(length, batch_size, size, memory=False),
                decode.Decode(length, new_tokens, [decode_batch_size], [size], [tokens_per_step]),
            )
            for length, size in itertools.product(lengths, block_sizes)
        ]

    def run(self, bench: Workbench) -> dict[str, Any]:
        for _, decoding in self.points:  # before any is measured: the longest may be the last
            bench.check_positions(decoding.prompt_length + decoding.new_tokens, "length + new_tokens")
        return {"points": [{"train": t.run(bench), "decode": d.run(bench)} for t, d in self.points]}

    def tables(self, result: dict[str, Any]) -> list[Table]:
        first = result["points"][0]
        table = Table(
            title=f"Training (batch {first['train']['settings']['batch_size']}) and decoding "
            f"({first['decode']['settings']['new_tokens']} tokens after L, "
            f"batch {first['decode']['points'][0]['batch_size']}, "
            f"{first['decode']['points'][0]['tokens_per_step']} tokens a step)",
            caption="median (range); naive/ours and ours/AR are times of a step, the last two columns speeds",
        )
        columns = ("L", "B", "train\ntok/s", "naive\n/ ours", "ours\n/ AR")
        for column in (*columns, "decode\ntok/s", "ours\n/ naive", "ours\n/ HF"):
            table.add_column(column, justify="right", no_wrap=True)
        for point in result["points"]:
            trained, decoded = point["train"], point["decode"]["points"][0]["arms"][decode.OURS]
            table.add_row(
                str(trained["settings"]["length"]),
                str(trained["settings"]["block_size"]),
                f"{trained['tokens_per_second'][train.OURS]:,.0f}",
                two_lines(trained["time_over_ours"][train.NAIVE]),
                two_lines(trained["time_over_ar"][train.OURS]),
                f"{decoded['tokens_per_second']:,.0f}",
                two_lines(decoded["speed_over_naive"]),
                two_lines(decoded["speed_over_hf"]),
            )
        return [table]


def two_lines(value: dict[str, float]) -> str:
    """The median, with the range in a second line, so that four fit side by side."""
    return with_range(value).replace(" ", "\n")
