"""Passes over a corpus: every document once in each, in rows that a table on the disk lists.

A pass is `sequential` (in the order of the source, each row filled up before the next one), `packed` (documents chosen
so that they fill rows, in rows that are shuffled for each pass) or `grouped` (one document a row, beside rows of
similar length, which wastes no compute: what is behind the longest of a micro-batch is left out). A text may be cut at
the end of a row, and goes on in another; an answer may not.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from dlm.data.corpus import Part
from dlm.data.packing import Document, PackedRows, Tail
from dlm.runs.digest import digest

ORDERS = ("random", "sequential", "packed", "grouped")
PERIOD = 1000  # rows in which each source has its share

Piece = tuple[int, int, int, int]  # a document, where the piece of it starts and stops, and the EOS behind it


class PassTable:
    """The rows of a pass over a part of a corpus. `pieces` are those of all rows, one row after the other, and
    `bounds[r]` is where row r begins in them. `cuts`: documents may be cut."""

    def __init__(self, part: Part, order: str, length: int, tail: Tail, eos_id: int, group: int, seed: int, cuts: bool):
        self.arguments = (part, order, length, tail, eos_id, group, seed, cuts)
        self.part, self.order, self.eos_id, self.group, self.seed = part, order, eos_id, group, seed
        tails = [tail(n, n - 1, random.Random(0)) for n in range(1, length + 1)]  # what a table depends on of a pattern
        made_of = {"split": part.split, "held_out": part.held_out, "order": order, "tails": tails, "cuts": cuts}
        file = part.corpus.folder / f"rows-{digest(made_of, 16)}.npy"
        if not file.exists():
            write(file, rows_of(part, order, length, tail, cuts))
        self.bounds, self.pieces = (np.load(f, mmap_mode="r") for f in (bounds_file(file), file))
        if not len(self):
            raise ValueError(f"no document fits a row of {length} tokens: raise data.length or shorten the documents")
        self.ordered = lru_cache(1)(self.shuffled)

    def __reduce__(self):
        return PassTable, self.arguments

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def documents(self, number: int) -> list[Document]:
        """The documents of row `number`, which counts on from pass to pass."""
        epoch, row = divmod(number, len(self))
        row = row if self.order == "sequential" else int(self.ordered(epoch)[row])
        return [self.document(*map(int, piece)) for piece in self.pieces[self.bounds[row] : self.bounds[row + 1]]]

    def document(self, number: int, start: int, stop: int, tail: int) -> Document:
        whole = self.part.document(number)
        part = replace(whole, ids=whole.ids[start:stop], maskable=whole.maskable[start:stop])
        return part.ended(self.eos_id, tail)

    def shuffled(self, epoch: int) -> Integer[np.ndarray, " R"]:
        """The rows in the order of a pass; groups of rows stay together."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.order != "grouped":
            return rng.permutation(len(self))
        groups = rng.permutation(-(-len(self) // self.group))[:, None] * self.group + np.arange(self.group)
        return groups[groups < len(self)]


class PassRows(PackedRows):
    """The rows of passes over one or several sources, each with its `table`. Of every `PERIOD` rows each source has
    its share, so that the rows of a source that come before a row are counted without drawing them."""

    def __init__(self, rows: PackedRows, tables: list[PassTable]):
        vars(self).update(vars(rows))
        self.tables, total = tables, sum(self.weights)
        ends = np.cumsum([weight / total for weight in self.weights])
        self.quotas = np.diff(np.round(ends * PERIOD), prepend=0).astype(int)
        if not self.quotas.all():
            raise ValueError(
                f"a source has less than one of {PERIOD} rows, which passes do not share out further: raise its weight "
                "in data.sources, or choose data.order=random"
            )

    def documents(self, index: int) -> list[Document]:
        period, within = divmod(self.drawn(index), PERIOD)
        order = self.sources_of(period)
        source = order[within]
        before = period * self.quotas[source] + np.count_nonzero(order[:within] == source)
        return self.tables[source].documents(int(before))

    def sources_of(self, period: int) -> Integer[np.ndarray, " P"]:
        """Which source each row of a period has."""
        return np.random.default_rng([self.seed, period]).permutation(
            np.repeat(np.arange(len(self.tables)), self.quotas)
        )


def rows_of(part: Part, order: str, length: int, tail: Tail, cuts: bool) -> Iterator[list[Piece]]:
    """The rows of a pass before they are shuffled."""
    if order == "sequential":
        return in_order(part, length, tail, cuts)
    pieces = [*cut(part, length, tail, cuts)]
    pieces.sort(key=size, reverse=True)
    return ([piece] for piece in pieces) if order == "grouped" else best_fit(pieces, length)


def size(piece: Piece) -> int:
    _, start, stop, tail = piece
    return stop - start + tail


def cut(part: Part, length: int, tail: Tail, cuts: bool) -> Iterator[Piece]:
    """Pieces of at most `length` tokens; a document that is longer and may not be cut is left out."""
    for number in range(len(part)):
        whole = part.length(number)
        for start in range(0, whole if cuts or whole <= length else 0, length):
            stop = min(start + length, whole)
            yield number, start, stop, fill(part, number, start, length, tail) if stop == whole else 0


def in_order(part: Part, length: int, tail: Tail, cuts: bool) -> Iterator[list[Piece]]:
    """Rows that are filled one after the other."""
    row: list[Piece] = []
    room = length
    for number in range(len(part)):
        whole, start = part.length(number), 0
        while start < whole and (cuts or whole <= length):
            left = whole - start
            if left <= room:
                extra = fill(part, number, start, length, tail)
                piece = number, start, whole, min(extra, room - left) if cuts else extra
            else:
                piece = number, start, start + room, 0
            if size(piece) > room or not room or (piece[2] < whole and not cuts):
                yield row
                row, room = [], length
                continue
            row, room, start = [*row, piece], room - size(piece), piece[2]
    if row:
        yield row


def fill(part: Part, number: int, start: int, length: int, tail: Tail) -> int:
    """The EOS behind the tokens of a document from `start` on, as many as a row of `length` tokens has room for."""
    tokens, given = part.length(number) - start, max(part.given(number) - start, 0)
    return min(tail(tokens, given, random.Random(number)), length - tokens) if tokens <= length else 0


def best_fit(pieces: list[Piece], length: int) -> Iterator[list[Piece]]:
    """Best-fit decreasing: each piece, the longest first, into the row with the least room that has enough. (Ding et
    al., "Fewer truncations improve language modeling", 2024.) The rooms that rows have are bits of one number."""
    rows: dict[int, list[list[Piece]]] = {}  # by the room that they have
    rooms = 0
    for piece in pieces:
        fitting = rooms >> size(piece)
        room = size(piece) + (fitting & -fitting).bit_length() - 1 if fitting else length
        row = rows[room].pop() if fitting else []
        if fitting and not rows[room]:
            rooms ^= 1 << room
        row.append(piece)
        left = room - size(piece)
        rows.setdefault(left, []).append(row)
        rooms |= 1 << left
    for room in sorted(rows):
        yield from rows[room]


def write(file: Path, rows: Iterator[list[Piece]]) -> None:
    """Write the rows of a pass, each file under a temporary name first."""
    pieces, bounds = [], [0]
    for row in rows:
        pieces += row
        bounds.append(len(pieces))
    for target, values in ((bounds_file(file), bounds), (file, np.array(pieces, np.int64).reshape(-1, 4))):
        temporary = target.with_name(f".{target.stem}.{os.getpid()}.npy")
        np.save(temporary, values)
        temporary.replace(target)


def bounds_file(file: Path) -> Path:
    return file.with_name(f"{file.stem}-bounds.npy")
