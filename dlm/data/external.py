"""Data of one's own: rows that are read from files or a hub, tokenised once, and drawn from the disk."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from transformers import PreTrainedTokenizerBase

from dlm.data.corpus import SPLITS, Corpus, Part
from dlm.data.module import PackedData
from dlm.data.origin import Origin
from dlm.data.packing import Document, Source, Windows
from dlm.data.prepared import Encoder, prepared
from dlm.runs.digest import Buffer


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
    `cache_folder`). `held_out` says which documents are for validation: the `tail` of a source, or a draw by `hash`."""

    def __init__(
        self,
        specs: dict[str, Spec],
        held_out: str = "tail",
        cache: str | None = None,
        num_proc: int = 1,
        **kwargs: Any,
    ):
        super().__init__(mixture={name: spec.weight for name, spec in specs.items()}, **kwargs)
        if held_out not in SPLITS:
            raise ValueError(f"data.held_out {held_out!r} is unknown: choose one of {', '.join(SPLITS)}")
        if num_proc < 1:
            raise ValueError(f"data.num_proc {num_proc} must be at least 1")
        self.specs, self.held_out, self.cache, self.num_proc = specs, held_out, cache, num_proc
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

    def sources(self, split, tokenizer):
        return {
            name: self.specs[name].kind.source(corpus.part(split, self.held_out), self.length)
            for name, corpus in self.corpora.items()
        }


class CorpusWindows(Windows):
    """Random windows of the documents of a prepared corpus."""

    def __init__(self, part: Part):
        self.texts, self.cum_lengths = part, part.ends

    def __reduce__(self):
        return CorpusWindows, (self.texts,)

    def content(self) -> Iterable[Buffer]:
        return content(self.texts)


def content(part: Part) -> Iterable[Buffer]:
    """What identifies the documents of a part."""
    yield f"{part.corpus.record['fingerprint']} {part.split} {part.held_out}".encode()


class WholeDocuments:
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

    def content(self) -> Iterable[Buffer]:
        return content(self.part)
