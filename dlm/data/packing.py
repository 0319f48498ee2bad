"""Documents → rows of exactly L tokens, several documents to a row, made on demand.

Row i is a pure function of (seed, i): nothing is stored, any row can be reached at once, and a run that resumes at
row i sees what the uninterrupted run would have seen.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch.utils.data import Dataset

from dlm.data import tasks
from dlm.data.text import refuse_mask
from dlm.types import Batch

ATTEMPTS = 100  # at drawing a document that fits an empty row
MIN_ROOM = 4  # shorter ends of a row are padded rather than filled with a sliver of text


@dataclass(frozen=True)
class Document:
    """Token ids and which of them may be masked."""

    ids: list[int]
    maskable: list[bool]


@runtime_checkable
class Source(Protocol):
    """Something documents can be drawn from."""

    def draw(self, rng: random.Random, room: int) -> Document | None:
        """A document of at most `room` tokens, or None where the next one does not fit."""


class PackedRows(Dataset):
    """`num_rows` rows of `length` tokens. Each row is filled from one source, chosen by weight; the end that its last
    document leaves is filled from `filler` (text that may be cut anywhere), else padded.

    `tail(length, rng)` says how many more EOS a finished document gets: at decode time a block is always whole, so in
    training the end of a document must not show in the number of masks.
    """

    def __init__(
        self,
        sources: list[Source],
        weights: list[float],
        filler: Source | None,
        length: int,
        num_rows: int,
        pad_id: int,
        eos_id: int,
        tail: Callable[[int, random.Random], int],
        seed: int,
    ):
        self.sources, self.weights, self.filler = sources, weights, filler
        self.length, self.num_rows, self.seed = length, num_rows, seed
        self.pad_id, self.eos_id, self.tail = pad_id, eos_id, tail

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")
        rng = random.Random(f"{self.seed}-{index}")
        for _ in range(ATTEMPTS):
            if documents := self.fill(rng):
                return pack(documents, self.length, self.pad_id)
        raise ValueError(f"no document fits a row of {self.length} tokens: raise data.length or shorten the documents")

    def fill(self, rng: random.Random) -> list[Document]:
        """The documents of a row; none where already the first one drawn is too long."""
        source = rng.choices(self.sources, self.weights)[0]
        documents: list[Document] = []
        room = self.length
        for current in (source, self.filler):
            while current and room >= MIN_ROOM and (document := self.draw(current, rng, room)):
                documents.append(document)
                room -= len(document.ids)
        return documents

    def draw(self, source: Source, rng: random.Random, room: int) -> Document | None:
        """A document with its tail, or None where they do not fit."""
        document = source.draw(rng, room)
        if document is None or document.ids[-1] != self.eos_id:
            return document
        tail = self.tail(len(document.ids), rng)
        if len(document.ids) + tail > room:
            return None
        return Document(document.ids + [self.eos_id] * tail, document.maskable + [True] * tail)


def pack(documents: list[Document], length: int, pad_id: int) -> Batch:
    """One row (tensors of shape [L]) holding `documents` one after the other, padded to `length`."""
    ids, maskable, number, position = [], [], [], []
    for n, document in enumerate(documents):
        ids += document.ids
        maskable += document.maskable
        number += [n] * len(document.ids)
        position += range(len(document.ids))
    if len(ids) > length:
        raise ValueError(f"documents of {len(ids)} tokens do not fit a row of {length}: raise data.length")
    pad = length - len(ids)
    return Batch(
        torch.tensor(ids + [pad_id] * pad),
        torch.tensor(maskable + [False] * pad),
        torch.tensor(number + [-1] * pad),
        torch.tensor(position + list(range(pad))),
    )


def collate(rows: list[Batch]) -> Batch:
    """Rows of shape [L] → one batch of shape [B L]."""
    return Batch(
        *(torch.stack([getattr(r, name) for r in rows]) for name in ("x0", "maskable", "document", "position"))
    )


class Windows(Source):
    """Windows of long texts: each starts anywhere, ends where the text or the room ends, and is maskable throughout.
    The end of a text is marked by EOS."""

    def __init__(self, texts: list[list[int]], eos_id: int):
        self.texts = [ids + [eos_id] for ids in texts if ids]
        if not self.texts:
            raise ValueError("the dataset holds no text: every document is empty")
        self.cum_lengths = list(itertools.accumulate(map(len, self.texts)))  # summed once, not at every draw

    def draw(self, rng: random.Random, room: int) -> Document:
        ids = rng.choices(self.texts, cum_weights=self.cum_lengths)[0]
        start = rng.randrange(max(1, len(ids) - MIN_ROOM))
        window = ids[start : start + room]
        return Document(window, [True] * len(window))


class TaskSource(Source):
    """Generated tasks of one split: the prompt is context, the answer and its EOS are maskable."""

    def __init__(self, split: str, tokenizer, families: list[str]):
        self.split, self.tokenizer, self.families = split, tokenizer, families
        self.encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        self.bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
        self.eos_id = tokenizer.eos_token_id

    def draw(self, rng: random.Random, room: int) -> Document | None:
        example = tasks.sample(rng.choice(self.families), self.split, rng)
        prompt = self.bos + self.encode(example.prompt)
        answer = self.encode(example.answer) + [self.eos_id]
        if len(prompt) + len(answer) > room:
            return None
        refuse_mask(self.tokenizer, [(f"the task {example.prompt + example.answer!r}", prompt + answer)])
        return Document(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def adds_bos(tokenizer) -> bool:
    """Whether this tokenizer begins a text with its BOS token."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id
