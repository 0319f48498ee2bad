"""How long a run trains: its budget, which may be counted in tokens, in examples, in answer tokens or in FLOPs.

An *example* is a document that begins in a row and has an answer; *answer tokens* are those that may be masked, without
the EOS that fill its last block. Of data without answers, all documents and all their tokens count.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

from omegaconf import DictConfig

from dlm.conversion.flops import micro_batch_flops
from dlm.conversion.module import Conversion
from dlm.data.module import PackedData
from dlm.data.packing import PackedRows, Windows, collate

UNITS = ("tokens", "examples", "answer_tokens", "flops")
EXAMPLES, ANSWER_TOKENS = UNITS[1:3]
COUNTED = 100_000  # rows of which a record's examples and answer tokens are counted; those of longer runs follow


@dataclass(frozen=True)
class Budget:
    """An `amount` of a `unit`, spent in optimizer steps of `rows` rows, each process and accumulated batch included."""

    unit: str
    amount: float
    rows: int

    @classmethod
    def of(cls, cfg: DictConfig, rows: int) -> Budget:
        """The budget of a config; `tokens` is that of configs without a unit. `ValueError` if it names none."""
        asked = cfg.get("budget") or {}
        unit, amount = asked.get("unit", "tokens"), asked.get("amount")
        if unit not in UNITS:
            raise ValueError(f"budget.unit {unit!r} is unknown: choose one of {', '.join(UNITS)}")
        if unit == "tokens":
            if amount is not None:
                raise ValueError(f"budget.amount {amount!r} is of no use with budget.unit=tokens: set tokens={amount}")
            amount = cfg.tokens
            cls(unit, amount, rows).require_step(rows * cfg.data.length)
        if amount is None or not amount > 0:
            raise ValueError(f"budget.amount {amount!r} must be a number of {unit} above 0: set budget.amount=NUMBER")
        return cls(unit, amount, rows)

    def num_steps(self, data: PackedData, conversion: Conversion) -> int:
        """The optimizer steps that spend the budget, the last one whole. Raises `ValueError` if it is less than a step
        or cannot be counted."""
        if self.unit in (EXAMPLES, ANSWER_TOKENS):
            return self.walk(endless(data.train_rows))
        step = self.rows * data.length if self.unit == "tokens" else flops_of_step(data, conversion, self.rows)
        if step is None:
            raise ValueError("budget.unit flops cannot be counted for this model and rollout: choose another unit")
        self.require_step(step)
        return math.ceil(self.amount / step)

    def walk(self, rows: PackedRows) -> int:
        """The steps after which the rows hold the amount. Raises `ValueError` if `COUNTED` rows hold nothing of it."""
        step, total = 0, 0
        while total < self.amount:
            total += count(rows, range(step * self.rows, (step + 1) * self.rows))[self.unit]
            if step == 0:
                self.require_step(total)
            step += 1
            if total == 0 and step * self.rows >= COUNTED:
                raise ValueError(
                    f"budget.unit {self.unit}: the first {step * self.rows:,} rows hold none; raise the weight of "
                    "tasks in data.mixture or choose another unit"
                )
        return step

    def require_step(self, step: float) -> None:
        """Raises `ValueError` if the budget is less than a `step`."""
        if self.amount < step:
            option = "tokens" if self.unit == "tokens" else "budget.amount"
            raise ValueError(
                f"{option} {self.amount:g} is less than one optimizer step of {step:g} {self.unit} (of data.batch_size "
                f"x trainer.accumulate x devices x nodes rows): raise {option} or lower data.batch_size"
            )

    def spent(self, data: PackedData, conversion: Conversion, num_steps: int) -> dict[str, float | None]:
        """What a run of so many steps spends, in every unit; FLOPs are None if they cannot be counted. Examples and
        answer tokens of more than `COUNTED` rows are estimated from the first ones: counting all draws all."""
        step, num_rows = flops_of_step(data, conversion, self.rows), num_steps * self.rows
        counted = count(data.train_rows, range(min(num_rows, COUNTED)))
        if num_rows > COUNTED:
            counted = {unit: round(n * num_rows / COUNTED) for unit, n in counted.items()}
        return {"tokens": num_rows * data.length} | counted | {"flops": step and step * num_steps}


def count(rows: PackedRows, indices: range) -> dict[str, int]:
    """The examples and answer tokens of some rows."""
    has_answers = not all(isinstance(source, Windows) for source in rows.sources)
    counts = dict.fromkeys((EXAMPLES, ANSWER_TOKENS), 0)
    for index in indices:
        for document in rows.documents(index):
            if document.kind == "answers" or not has_answers:
                counts[EXAMPLES] += 1
                counts[ANSWER_TOKENS] += sum(document.maskable) - document.fill
    return counts


def endless(rows: PackedRows) -> PackedRows:
    """The same rows, and those that follow them."""
    more = copy.copy(rows)
    more.num_rows = 2**62
    return more


def flops_of_step(data: PackedData, conversion: Conversion, rows: int) -> float | None:
    """The mean FLOPs of an optimizer step of `rows` rows, all processes together, estimated from the first
    micro-batches; None if they cannot be counted."""
    more, size = endless(data.train_rows), data.batch_size

    def micro_batch(number: int):
        return collate([more[number * size + n] for n in range(size)])

    of_micro_batch = micro_batch_flops(conversion, micro_batch, conversion.seed)
    return None if of_micro_batch is None else of_micro_batch * rows / size
