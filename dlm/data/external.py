"""Data of one's own: rows that are read from files or a hub, tokenised once, and drawn from the disk."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from transformers import PreTrainedTokenizerBase

from dlm.data.corpus import SPLITS, Corpus, Part
from dlm.data.encoder import Encoder
from dlm.data.module import PackedData
from dlm.data.origin import Origin
from dlm.data.packing import Document, Source, Windows
from dlm.data.passes import ORDERS, PassRows, PassTable
from dlm.data.prepared import prepared
from dlm.runs.digest import Buffer

SAMPLE = 64  # rows


@runtime_checkable
class Kind(Protocol):
    """What the rows of a source hold, and how documents are made and drawn of them."""

    def encoder(self, tokenizer: PreTrainedTokenizerBase) -> Encoder:
        """Makes documents of rows."""

    def source(self, part: Part, length: int) -> Source:
        """Draws documents for rows of `length` tokens."""


@dataclass(frozen=True)
class Spec:
    """A source: where its rows come from, what they hold, and the weight of its rows in the mixture."""

    origin: Origin
    kind: Kind
    weight: float = 1.0


class External(PackedData):
    """Rows from `specs`, each of which is prepared once by `num_proc` processes, in the folder `cache` (None: see
    `cache_folder`). `held_out` says which documents are for validation: the `tail` of a source, or a draw by `hash`.
    `order` says how training goes through the documents: at `random`, with replacement, or in passes (`PassTable`)."""

    def __init__(
        self,
        specs: dict[str, Spec],
        held_out: str = "tail",
        order: str = "random",
        cache: str | None = None,
        num_proc: int = 1,
        **kwargs: Any,
    ):
        super().__init__(mixture={name: spec.weight for name, spec in specs.items()}, **kwargs)
        if held_out not in SPLITS:
            raise ValueError(f"data.held_out {held_out!r} is unknown: choose one of {', '.join(SPLITS)}")
        if order not in ORDERS:
            raise ValueError(f"data.order {order!r} is unknown: choose one of {', '.join(ORDERS)}")
        if num_proc < 1:
            raise ValueError(f"data.num_proc {num_proc} must be at least 1")
        self.specs, self.held_out, self.order, self.cache, self.num_proc = specs, held_out, order, cache, num_proc
        self.corpora: dict[str, Corpus] = {}

    def corpus(self, name: str, tokenizer: PreTrainedTokenizerBase) -> Corpus:
        """The prepared corpus of a source. Raises `ValueError` if it cannot be divided into training and validation."""
        spec = self.specs[name]
        corpus = prepared(spec.origin, spec.kind.encoder(tokenizer), self.cache, self.num_proc)
        if len(corpus) < 2 or not all(len(corpus.part(split, self.held_out)) for split in ("train", "val")):
            part = "; blank lines part the documents of a .txt file" if str(spec.origin.path).endswith(".txt") else ""
            raise ValueError(
                f"{spec.origin.label} holds {len(corpus)} non-empty documents; at least 2 are needed{part}"
            )
        return corpus

    def prepare(self, tokenizer: PreTrainedTokenizerBase, *args: Any, **kwargs: Any) -> None:
        self.corpora = {name: self.corpus(name, tokenizer) for name in self.mixture}
        super().prepare(tokenizer, *args, **kwargs)
        if self.order != "random":
            self.train_rows = PassRows(self.train_rows, [self.table(source) for source in self.train_rows.sources])

    def table(self, source: FromCorpus) -> PassTable:
        """The rows of a pass over what a source draws from."""
        seed, cuts = self.train_rows.seed, isinstance(source, Windows)
        return PassTable(source.part, self.order, self.length, self.tail, self.eos_id, self.group, seed, cuts)

    def summary(self, num_rows: int) -> dict[str, dict[str, float]]:
        """Of each source its `documents` and `tokens`, those `held_out` and `left_out` (which fit no row), its share of
        the `rows`, the `epochs` that these make, and the share of what is drawn that is `cut` before its end. Without
        passes, epochs and cuts are those of `SAMPLE` rows."""
        sources, total = {}, sum(self.mixture.values())
        for number, (name, weight) in enumerate(self.mixture.items()):
            source, corpus = self.train_rows.sources[number], self.corpora[name]
            drawn, per_row = self.sample(number)
            tokens, rows = source.part.num_tokens, num_rows * weight / total
            ended = sum(document.ids[-1] == self.eos_id for document in drawn)
            sources[name] = {
                "documents": len(source.part),
                "tokens": tokens,
                "held_out": len(corpus) - len(source.part),
                "left_out": getattr(source, "too_long", 0),
                "rows": weight / total,
                "epochs": rows * per_row / tokens,
                "cut": 1 - ended / len(drawn),
            }
        return sources

    def sample(self, number: int) -> tuple[list[Document], float]:
        """The documents of some rows of a source, and the tokens of a row without what only fills it."""
        if isinstance(self.train_rows, PassRows):
            table = self.train_rows.tables[number]
            rows = [table.documents(n) for n in range(min(len(table), SAMPLE))]
        else:
            only = copy.copy(self.train_rows)
            only.sources, only.weights, only.filler = [self.train_rows.sources[number]], [1.0], None
            only.num_rows, only.packed = SAMPLE, (-1, [])
            rows = [only.documents(n) for n in range(SAMPLE)]
        drawn = [document for row in rows for document in row]
        return drawn, sum(len(document.ids) - document.fill for document in drawn) / len(rows)

    def sources(self, split, tokenizer):
        return {
            name: self.specs[name].kind.source(corpus.part(split, self.held_out), self.length)
            for name, corpus in self.corpora.items()
        }


class FromCorpus:
    """A source that draws from a part of a prepared corpus."""

    part: Part

    def content(self) -> Iterable[Buffer]:
        yield f"{self.part.corpus.record['fingerprint']} {self.part.split} {self.part.held_out}".encode()


class CorpusWindows(FromCorpus, Windows):
    """Random windows of the documents of a prepared corpus."""

    def __init__(self, part: Part):
        self.part = self.texts = part
        self.cum_lengths = part.ends

    def __reduce__(self):
        return CorpusWindows, (self.part,)


class WholeDocuments(FromCorpus):
    """Whole documents of a prepared corpus, each as likely as any other. Those of more than `length` tokens are never
    drawn; `too_long` is their number. Raises `ValueError` if there are no others."""

    def __init__(self, part: Part, length: int):
        self.part, self.length = part, length
        self.too_long = int((np.diff(part.ends, prepend=0) > length).sum())
        if self.too_long == len(part):
            raise ValueError(
                f"all {len(part):,} documents of the {part.split} split have more than data.length {length} tokens: "
                "raise it"
            )

    def draw(self, rng: random.Random, room: int) -> Document | None:
        while self.part.length(index := rng.randrange(len(self.part))) > self.length:
            pass
        return self.part.document(index) if self.part.length(index) <= room else None


def summary_lines(summary: dict[str, dict[str, float]]) -> list[str]:
    """A summary of data in words, a line for each source."""
    return [
        f"data {name}: {of['documents']:,} documents, {of['tokens']:,} tokens ({of['held_out']:,} documents held out); "
        f"{of['rows']:.0%} of the rows, {of['epochs']:.3g} epochs, {of['cut']:.0%} of what is drawn is cut"
        + (f"; {of['left_out']:,} documents fit no row and are left out" if of["left_out"] else "")
        for name, of in summary.items()
    ]
