"""Packs documents into rows of exactly L tokens, several documents per row, on demand.

Row i is a pure function of (seed, i): no rows are stored, any row can be accessed directly, and a run that resumes at
row i sees the same rows as the uninterrupted run.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import Dataset

from dlm.data import tasks
from dlm.data.encoding import refuse_mask
from dlm.runs.digest import Buffer
from dlm.types import Batch, Images

ATTEMPTS = 100  # to draw a document that fits an empty row
MIN_ROOM = 4  # tokens; a shorter end of a row is padded, not filled

Tail = Callable[[int, int, random.Random], int]


@dataclass(frozen=True)
class Document:
    """Token ids, and for each token whether it may be masked. The last `fill` tokens are EOS behind its own, which only
    fill a block. `images` are those that its tokens stand for; None: it is text."""

    ids: list[int]
    maskable: list[bool]
    fill: int = 0
    images: Images | None = None

    @property
    def given(self) -> int:
        """The tokens of its prompt: those before the first that may be masked."""
        return self.maskable.index(True) if any(self.maskable) else len(self.maskable)

    @property
    def kind(self) -> str:
        """`answers` if a part of it is given, as a prompt is, else `prose`."""
        return "prose" if all(self.maskable) else "answers"

    def ended(self, eos_id: int, tail: int) -> Document:
        """The document with `tail` further EOS as its fill. One that does not end in EOS is cut off, and has none."""
        if self.ids[-1] != eos_id:
            return self
        return replace(self, ids=self.ids + [eos_id] * tail, maskable=self.maskable + [True] * tail, fill=tail)


@runtime_checkable
class Source(Protocol):
    """A source of documents."""

    def draw(self, rng: random.Random, room: int) -> Document | None:
        """Draw a document of at most `room` tokens; None if the drawn one does not fit."""


@runtime_checkable
class Stored(Protocol):
    """A source whose tokens are read, not generated."""

    def content(self) -> Iterable[Buffer]:
        """What identifies the tokens that are drawn from."""


class PackedRows(Dataset):
    """`num_rows` rows of `length` tokens. Each row is filled from one source, drawn by weight; the end of the row is
    filled from `filler` (text that may be cut anywhere), else padded.

    Rows are packed in groups of `group`: a document goes into the first row of its source with room for it, and the
    first document that fits none closes them. It is lost, which makes long documents rarer, by less in larger groups.

    `tail(length, given, rng)` is the number of EOS tokens to append to a finished document whose first `given` tokens
    are a prompt: decoding always processes whole blocks, so in training the number of masks must not reveal the end of
    a document. They are in the loss if `scores_fill`, and count half in it if `halves_fill`.
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
        tail: Tail,
        seed: int,
        group: int = 1,
        scores_fill: bool = True,
        halves_fill: bool = False,
    ):
        self.sources, self.weights, self.filler, self.group = sources, weights, filler, group
        self.length, self.num_rows, self.seed = length, num_rows, seed
        self.pad_id, self.eos_id, self.tail = pad_id, eos_id, tail
        self.scores_fill, self.halves_fill = scores_fill, halves_fill
        self.distinct: int | None = None  # after so many, the rows begin again
        self.packed: tuple[int, list[list[Document]]] = (-1, [])  # the last group, whose rows come next

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Batch:
        row = pack(self.documents(index), self.length, self.pad_id)
        halved = row.fill if self.halves_fill else None
        return replace(row, fill=None, halved=halved) if self.scores_fill else row

    def documents(self, index: int) -> list[Document]:
        """The documents of a row."""
        number, row = divmod(self.drawn(index), self.group)
        if self.packed[0] != number:
            self.packed = number, self.fill(random.Random(f"{self.seed}-{number}"))
        return self.packed[1][row]

    def drawn(self, index: int) -> int:
        """The row that is row `index`: an earlier one where rows begin again."""
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")
        return index if self.distinct is None else index % self.distinct

    def fill(self, rng: random.Random) -> list[list[Document]]:
        """Draw the documents of a group of rows."""
        chosen = rng.choices(self.sources, self.weights, k=self.group)
        rows: list[list[Document]] = [[] for _ in chosen]
        for source in dict.fromkeys(chosen):
            self.fill_from(source, [row for row, of in zip(rows, chosen, strict=True) if of is source], rng)
        for row in rows if self.filler else ():
            self.fill_from(self.filler, [row], rng)
        return rows

    def fill_from(self, source: Source, rows: list[list[Document]], rng: random.Random) -> None:
        """Add documents of one source to rows until one fits none of them. Raises `ValueError` if none fits an empty
        row."""
        rooms = [self.length - sum(len(document.ids) for document in row) for row in rows]
        refused = 0  # in a row, while there are empty rows
        while max(rooms) >= MIN_ROOM and refused < ATTEMPTS:
            document = self.draw(source, rng, max(rooms))
            refused = 0 if document else refused + 1
            if document:
                first = next(n for n, room in enumerate(rooms) if room >= len(document.ids))
                rows[first].append(document)
                rooms[first] -= len(document.ids)
            elif all(rows):
                return
        if not all(rows):
            raise ValueError(
                f"no document fits a row of {self.length} tokens: raise data.length or shorten the documents"
            )

    def draw(self, source: Source, rng: random.Random, room: int) -> Document | None:
        """Draw a document and append its tail; None if they do not fit."""
        document = source.draw(rng, room)
        if document is None or document.ids[-1] != self.eos_id:
            return document
        tail = self.tail(len(document.ids), document.given, rng)
        if len(document.ids) + tail > room:
            return None
        return document.ended(self.eos_id, tail)


def pack(documents: list[Document], length: int, pad_id: int) -> Batch:
    """Concatenate documents into one row (tensors of shape [L]), padded to `length`. Raises `ValueError` if they are
    longer."""
    ids, maskable, document_ids, position, fill = [], [], [], [], []
    for n, document in enumerate(documents):
        ids += document.ids
        maskable += document.maskable
        document_ids += [n] * len(document.ids)
        position += range(len(document.ids))
        fill += [n >= len(document.ids) - document.fill for n in range(len(document.ids))]
    if len(ids) > length:
        raise ValueError(f"documents of {len(ids)} tokens do not fit a row of {length}: raise data.length")
    pad = length - len(ids)
    images = {n: document.images for n, document in enumerate(documents) if document.images is not None}
    return Batch(
        torch.tensor(ids + [pad_id] * pad),
        torch.tensor(maskable + [False] * pad),
        torch.tensor(document_ids + [-1] * pad),
        torch.tensor(position + list(range(pad))),
        torch.tensor(fill + [False] * pad),
        (images,) if images else None,
    )


def collate(rows: list[Batch]) -> Batch:
    """Stack rows of shape [L] into a batch of shape [B, L]."""
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(Batch)}
    images = columns.pop("images")
    stacked = {name: None if column[0] is None else torch.stack(column) for name, column in columns.items()}
    if any(images):
        stacked["images"] = tuple(of_row[0] if of_row else {} for of_row in images)
    return Batch(**stacked)


class Windows(Source):
    """Random windows of long texts. A window starts anywhere, ends with the text or the room, and is maskable
    throughout. EOS marks the end of a text."""

    def __init__(self, texts: list[list[int]], eos_id: int):
        self.texts: Sequence[np.ndarray] = [np.array([*ids, eos_id]) for ids in texts if ids]
        if not self.texts:
            raise ValueError("the dataset holds no text: every document is empty")
        # `rng.choices` would otherwise sum up the lengths at every draw, and not search for one of them.
        self.cum_lengths: Sequence[int] = list(itertools.accumulate(map(len, self.texts)))

    def draw(self, rng: random.Random, room: int) -> Document:
        ids = rng.choices(self.texts, cum_weights=self.cum_lengths)[0]
        start = rng.randrange(max(1, len(ids) - MIN_ROOM))
        window = ids[start : start + room].tolist()
        return Document(window, [True] * len(window))

    def content(self) -> Iterable[Buffer]:
        return (ids.astype(np.int64).data.cast("B") for ids in self.texts)


class TaskSource(Source):
    """Generated tasks of one split, a `share` of them of `others` and the rest of `families`. The answer and its EOS
    are maskable, the prompt is not."""

    def __init__(self, split: str, tokenizer, families: list[str], others: Sequence[str] = (), share: float = 0.0):
        self.split, self.tokenizer = split, tokenizer
        self.families, self.others, self.share = families, list(others), share
        self.bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
        self.eos_id = tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def draw(self, rng: random.Random, room: int) -> Document | None:
        families = self.others if self.share and rng.random() < self.share else self.families
        example = tasks.sample(rng.choice(families), self.split, rng)
        prompt = self.bos + self.encode(example.prompt)
        answer = self.encode(example.answer) + [self.eos_id]
        if len(prompt) + len(answer) > room:
            return None
        refuse_mask(self.tokenizer, [(f"the task {example.prompt + example.answer!r}", prompt + answer)])
        return Document(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def adds_bos(tokenizer) -> bool:
    """Whether a tokenizer starts every text with its BOS token."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id
