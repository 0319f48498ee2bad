"""The training data: a Lightning data module over packed rows."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from dlm.data import prose, tasks
from dlm.data.loading import MicroBatches, Remaining, training_loader
from dlm.data.packing import PackedRows, Source, TaskSource, Windows, collate
from dlm.data.text import encode, refuse_mask
from dlm.data.validation import ValidationRows
from dlm.runs.digest import fingerprint

FILLS = ("unscored", "scored")


class PackedData(lightning.LightningDataModule):
    """Rows drawn from `sources(split)`, tokenised by the parent's tokenizer.

    `mixture` weighs the sources by rows; a source of weight 0 is not used at all. `length` is L. Validation uses
    `val_rows` rows of the val split of every source (see `ValidationRows`). `group` is the number of rows that are
    packed together. `fill` says whether the EOS that fill the last block of a document are `scored` by the loss or
    `unscored`. `asked` names the families of tasks that evaluations of a run on this data ask; None means those of
    short answers.
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
        self.workers = 0  # processes that load the training data
        self.mixture = {name: weight for name, weight in mixture.items() if weight > 0}
        self.excluded = set(mixture) - set(self.mixture)  # a source of weight 0 does not fill the ends of rows, either

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tail: Callable[[int, random.Random], int],
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
            self.fill == "scored",
        )
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

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the tokens from which rows are drawn. Generated tasks depend on the code only and do
        not count."""
        texts = (ids for source in self.read if isinstance(source, Windows) for ids in source.texts)
        return fingerprint(memoryview(array("q", ids)).cast("B") for ids in texts)

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


class Text(PackedData):
    """Text that `datasets` reads: a file (txt, json, jsonl, csv, parquet) or a hub id. The column `field` holds it.

    The last 5 % of the documents (at least one) are held out for validation.
    """

    def __init__(self, path: str, field: str = "text", split: str = "train", **kwargs: Any):
        super().__init__(mixture={"text": 1.0}, **kwargs)
        self.path, self.field, self.split = path, field, split

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        super().prepare(*args, **kwargs)
        self.__dict__.pop("documents", None)  # frees the text; training reads only its tokens

    def sources(self, split, tokenizer):
        numbers, texts = list(self.documents), list(self.documents.values())
        if len(texts) < 2:
            part = "; blank lines part the documents of a .txt file" if self.path.endswith(".txt") else ""
            raise ValueError(
                f"data.path {self.path!r} holds {len(texts)} non-empty documents; at least 2 are needed{part}"
            )
        held_out = max(1, len(texts) // 20)
        of_split = slice(None, -held_out) if split == "train" else slice(-held_out, None)
        encoded = encode(tokenizer, texts[of_split])
        names = (f"document {n} of data.path {self.path!r}" for n in numbers[of_split])
        refuse_mask(tokenizer, zip(names, encoded, strict=True))
        return {"text": Windows(encoded, tokenizer.eos_token_id)}

    @cached_property
    def documents(self) -> dict[int, str]:
        """The non-empty documents by their number in the file, from 1. Raises `ValueError` for one that is no text."""
        column = self.column()
        for number, text in enumerate(column, 1):
            if not isinstance(text, str):
                raise ValueError(
                    f"data.field {self.field!r} of {self.path!r} does not hold text in document {number}, but "
                    f"{'nothing' if text is None else repr(text)[:80]}: give it text, or leave the document out"
                )
        return {number: text for number, text in enumerate(column, 1) if text.strip()}

    def column(self) -> list[Any]:
        """The column `field` of the dataset. Raises `ValueError` if it is missing or the dataset cannot be read."""
        from datasets import load_dataset

        file = Path(self.path).expanduser()
        if file.suffix in FORMATS and not file.exists():
            raise ValueError(f"data.path {self.path!r} does not exist: name a file that does, or a hub id")
        if file.is_file() and not file.stat().st_size:
            raise ValueError(f"data.path {self.path!r} is empty: name a file that holds text")
        try:
            if file.exists():
                kind = FORMATS[file.suffix]
                dataset = load_dataset(kind, data_files=str(file), split=self.split, **OPTIONS.get(kind, {}))
            else:
                dataset = load_dataset(self.path, split=self.split)
        except KeyError as error:
            raise ValueError(
                f"data.path {self.path!r} is not text: {file.suffix!r} is not one of {sorted(FORMATS)}"
            ) from error
        except Exception as error:  # datasets raises many types; all mean that the data cannot be read
            raise ValueError(
                f"data.path {self.path!r} could not be read as text: {error.__cause__ or error}"
            ) from error
        if self.field not in dataset.column_names:
            raise ValueError(f"data.field {self.field!r} is not a column of {self.path!r}: {dataset.column_names}")
        return list(dataset[self.field])


FORMATS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
OPTIONS = {
    "text": {"sample_by": "paragraph"},
    "csv": {"keep_default_na": False},  # the word NA is text, not a missing value
}
