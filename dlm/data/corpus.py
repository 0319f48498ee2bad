"""A prepared corpus: the tokens of all documents of a source, on the disk, read where they lie.

    <folder>/tokens.bin    the token ids of the documents, one document after the other (uint16 or uint32)
             ends.bin      where each document ends in them (int64)
             answers.bin   how many tokens of each document are given, and never masked (int32)
             keys.bin      a hash of the row that each document was made of (uint64)
             train.npy, val.npy            the documents of a split that is drawn by hash, and
             train_ends.npy, val_ends.npy  the sums of their lengths
             corpus.json   what it was made of, and how much it is; written last

`dlm.data.prepared` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from dlm.data.packing import Document
from dlm.runs.storage import read_json

RECORD = "corpus.json"
COLUMNS = {"ends": np.int64, "answers": np.int32, "keys": np.uint64}  # one number for each document
HELD_OUT = 20  # one of so many documents is for validation
SPLITS = ("tail", "hash")  # how these are chosen


class Corpus:
    """A prepared corpus in a folder. Workers open it anew, so that its tokens are in memory once for all processes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.record: dict[str, Any] = read_json(folder / RECORD)
        self.tokens = mapped(folder / "tokens.bin", np.dtype(self.record["dtype"]))
        self.ends, self.answers, self.keys = (mapped(folder / f"{name}.bin", kind) for name, kind in COLUMNS.items())

    def __reduce__(self):
        return Corpus, (self.folder,)

    def __len__(self) -> int:
        return len(self.ends)

    def document(self, number: int) -> Document:
        """A document by its number."""
        ids = self.ids(number).tolist()
        given = int(self.answers[number])
        return Document(ids, [False] * given + [True] * (len(ids) - given))

    def ids(self, number: int) -> Integer[np.ndarray, " n"]:
        """The token ids of a document."""
        start = self.ends[number - 1] if number else 0
        return self.tokens[start : self.ends[number]]

    def part(self, split: str, held_out: str) -> Part:
        return Part(self, split, held_out)


class Part(Sequence):
    """The documents of a `split`, `train` or `val`, as arrays of token ids. Of all documents the last 5 %, at least
    one, are for validation where `held_out` is `tail`, and those with the smallest hashes where it is `hash`: equal
    rows, and all documents of one row, are on one side. `ends` are the sums of the lengths."""

    def __init__(self, corpus: Corpus, split: str, held_out: str):
        self.corpus, self.split, self.held_out = corpus, split, held_out
        self.numbers: Sequence[int]
        if held_out == "hash":
            self.numbers, self.ends = (
                np.load(corpus.folder / f"{name}.npy", mmap_mode="r") for name in (split, f"{split}_ends")
            )
            return
        border = len(corpus) - max(1, len(corpus) // HELD_OUT)
        self.numbers = range(border) if split == "train" else range(border, len(corpus))
        self.ends = corpus.ends[self.numbers.start : self.numbers.stop]
        if self.numbers.start:
            self.ends = self.ends - corpus.ends[border - 1]

    def __reduce__(self):
        return Part, (self.corpus, self.split, self.held_out)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Integer[np.ndarray, " n"]:
        return self.corpus.ids(int(self.numbers[index]))

    def document(self, index: int) -> Document:
        return self.corpus.document(int(self.numbers[index]))

    def length(self, index: int) -> int:
        """The tokens of a document."""
        return int(self.ends[index] - (self.ends[index - 1] if index else 0))

    def given(self, index: int) -> int:
        """The tokens of a document's prompt."""
        return int(self.corpus.answers[int(self.numbers[index])])

    @property
    def num_tokens(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0


def split_by_hash(folder: Path, keys: Integer[np.ndarray, " n"], ends: Integer[np.ndarray, " n"]) -> None:
    """Write which documents are for training and which for validation, and the sums of their lengths."""
    lengths = np.diff(ends, prepend=0)
    border = max(keys.min(initial=2**64 - 1), np.uint64((2**64 - 1) // HELD_OUT))
    for split, chosen in (("train", keys > border), ("val", keys <= border)):
        np.save(folder / f"{split}.npy", np.flatnonzero(chosen))
        np.save(folder / f"{split}_ends.npy", np.cumsum(lengths[chosen]))


def mapped(file: Path, dtype: Any) -> np.ndarray:
    """A file as an array, of which only what is read comes into memory."""
    if not file.stat().st_size:
        return np.empty(0, dtype)
    return np.memmap(file, dtype, mode="r")
