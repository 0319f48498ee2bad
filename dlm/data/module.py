"""The training data: a Lightning data module over packed rows."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from dlm.data import prose, tasks
from dlm.data.encoding import refuse_mask
from dlm.data.loading import MicroBatches, Remaining, training_loader
from dlm.data.packing import PackedRows, Source, Stored, Tail, TaskSource, Windows, collate
from dlm.data.validation import ValidationRows
from dlm.runs.digest import fingerprint

FILLS = ("unscored", "scored", "halved")


class PackedData(lightning.LightningDataModule):
    """Rows drawn from `sources(split)`, tokenised by the parent's tokenizer.

    `mixture` weighs the sources by rows; a source of weight 0 is not used at all. `length` is L. Validation uses
    `val_rows` rows of the val split of every source (see `ValidationRows`). `group` is the number of rows that are
    packed together. `fill` says whether the EOS that fill the last block of a document are `scored` by the loss,
    `halved` in it, or `unscored`. After `distinct` training rows they begin again; None: never. `asked` names the
    families of tasks that evaluations of a run on this data ask; None means those of short answers.
    """

    asked: tuple[str, ...] | None = None

    def __init__(
        self,
        length: int,
        batch_size: int,
        val_rows: int,
        mixture: dict[str, float],
        group: int = 1,
        fill: str = "scored",
        distinct: int | None = None,
    ):
        super().__init__()
        if length < 2 or batch_size < 1 or val_rows < 1 or group < 1:
            raise ValueError(
                f"data.length {length}, data.batch_size {batch_size}, data.val_rows {val_rows} and data.group {group} "
                "must be at least 2, 1, 1 and 1"
            )
        if not mixture or any(w < 0 for w in mixture.values()) or sum(mixture.values()) <= 0:
            raise ValueError(f"data.mixture {dict(mixture)} must hold weights >= 0 of which one is > 0")
        if fill not in FILLS:
            raise ValueError(f"data.fill {fill!r} is unknown: choose one of {', '.join(FILLS)}")
        self.length, self.batch_size, self.val_rows, self.group, self.fill = length, batch_size, val_rows, group, fill
        if distinct is not None and distinct < 1:
            raise ValueError(f"data.distinct {distinct} must be at least 1, or null for rows that all differ")
        self.distinct = distinct
        self.workers = 0  # processes that load the training data
        self.processor: ProcessorMixin | None = None  # of a parent that reads images
        self.mixture = {name: weight for name, weight in mixture.items() if weight > 0}
        self.excluded = set(mixture) - set(self.mixture)  # a source of weight 0 does not fill the ends of rows, either

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tail: Tail,
        num_rows: int,
        seed: int,
    ) -> None:
        """Tokenise the sources once, before training, for `num_rows` training rows. `tail` is that of the attention
        pattern (see `PackedRows`)."""
        self.eos_id, self.tail = tokenizer.eos_token_id, tail
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        train, filler = self.chosen(self.sources("train", tokenizer))
        held_out, held_out_filler = self.chosen(self.sources("val", tokenizer))
        self.read = [*train.values(), filler, *held_out.values(), held_out_filler]
        self.train_rows = PackedRows(
            [*train.values()],
            [*self.mixture.values()],
            filler,
            self.length,
            num_rows,
            self.pad_id,
            self.eos_id,
            self.tail,
            seed,
            self.group,
            self.fill != "unscored",
            self.fill == "halved",
        )
        self.train_rows.distinct = self.distinct
        self.validation_rows = ValidationRows(held_out, self.val_rows, self.length, tokenizer, self.pad_id, tail)

    def sources(self, split: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Source]:
        """The sources of a split by the names that `mixture` uses."""
        raise NotImplementedError  # abstract

    def chosen(self, sources: dict[str, Source]) -> tuple[dict[str, Source], Source | None]:
        """The sources of the mixture by name, and the one that fills the ends of rows."""
        unknown = set(self.mixture) - set(sources)
        if unknown:
            raise ValueError(f"data.mixture names {sorted(unknown)}, but this dataset has {sorted(sources)}")
        filler = next((s for n, s in sources.items() if isinstance(s, Windows) and n not in self.excluded), None)
        return {name: sources[name] for name in self.mixture}, filler

    def summary(self, num_rows: int) -> dict[str, dict[str, float]]:
        """What `num_rows` rows of training read of each stored source, by its name (see `External`)."""
        return {}

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the tokens from which rows are drawn. Generated tasks depend on the code only and do
        not count."""
        return fingerprint(part for source in self.read if isinstance(source, Stored) for part in source.content())

    def train_dataloader(self) -> DataLoader:
        """Micro-batches: in `workers` processes, which prepare them as well, or in this one, which does so later."""
        trainer, module = self.trainer, self.trainer.lightning_module
        prepare = module.ahead if self.workers else None
        data = MicroBatches(self.train_rows, self.batch_size, trainer.global_rank, trainer.world_size, prepare)
        order = Remaining(len(data), lambda: module.micro_batches)
        pinned = prepare is not None and trainer.strategy.root_device.type == "cuda"
        return training_loader(data, order, self.workers, pinned)

    def val_dataloader(self) -> DataLoader:
        """All rows of validation as one batch."""
        rows = self.validation_rows
        return DataLoader(rows, len(rows), collate_fn=collate, generator=torch.Generator())


class Embedded(PackedData):
    """The shipped prose and the generated tasks, by default all that an evaluation asks."""

    def __init__(self, families: list[str] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        known = [*tasks.FAMILIES, *tasks.LONG]
        unknown = set(families or []) - set(known)
        if unknown:
            raise ValueError(f"data.families {sorted(unknown)} are unknown: choose from {known}")
        self.families = list(families or self.asked or tasks.FAMILIES)

    def sources(self, split, tokenizer):
        chapters = prose.encoded(split, tokenizer)
        refuse_mask(tokenizer, ((f"chapter {n} of the {split} prose", ids) for n, ids in enumerate(chapters, 1)))
        return {
            "tasks": TaskSource(split, tokenizer, self.families),
            "prose": Windows(chapters, tokenizer.eos_token_id),
        }


class Long(Embedded):
    """The shipped prose and the generated tasks with long answers, which evaluations of its runs ask. A share `short`
    of the tasks, counted in documents, has short answers, which keeps what the parent knew before."""

    asked = tuple(tasks.LONG)

    def __init__(self, short: float, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 <= short < 1:
            raise ValueError(f"data.short {short} must be a share of the tasks: 0 <= short < 1")
        self.short = short

    def sources(self, split, tokenizer):
        mixed = TaskSource(split, tokenizer, self.families, tuple(tasks.FAMILIES), self.short)
        return super().sources(split, tokenizer) | {"tasks": mixed}
