"""What makes documents of the rows of a corpus, and the processes in which it does."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike
from transformers import PreTrainedTokenizerBase

from dlm.data.origin import Batch
from dlm.data.packing import Document

AHEAD = 4  # batches for each process that tokenises


@dataclass
class Encoded:
    """What an encoder makes of a batch of rows: documents, each with the hash of its row, and how many rows were left
    out, by the reason; some of them are `named`. `beside` is appended to further files of the corpus, by their names
    (see `Encoder`). Arrays, and not lists, travel between processes."""

    tokens: np.ndarray
    lengths: np.ndarray
    answers: np.ndarray
    keys: np.ndarray
    left_out: dict[str, int] = field(default_factory=dict)
    beside: dict[str, np.ndarray] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        documents: list[tuple[Document, int]],
        left_out: dict[str, int],
        beside: dict[str, np.ndarray] | None = None,
        named: Iterable[str] = (),
    ) -> Encoded:
        """`documents` are (document, hash of its row)."""
        found = [document for document, _ in documents]
        return cls(
            np.concatenate([np.array(d.ids, np.uint32) for d in found]) if found else np.empty(0, np.uint32),
            np.array([len(d.ids) for d in found], np.int64),
            np.array([d.maskable.index(True) for d in found], np.int32),
            np.array([key for _, key in documents], np.uint64),
            left_out,
            beside or {},
            [*named],
        )


@runtime_checkable
class Encoder(Protocol):
    """Makes documents of rows. It is sent to other processes. `files` are the numbers that a corpus has beside its
    documents, by the name of their file; those of `counted` go on from the items of another file."""

    tokenizer: PreTrainedTokenizerBase
    files: Mapping[str, DTypeLike]
    counted: Mapping[str, str]

    def settings(self) -> dict[str, Any]:
        """What decides the documents of a row, besides the tokenizer."""

    def __call__(self, batch: Batch) -> Encoded:
        """Raises `ValueError` for a row that cannot be a document."""


Encodes = Callable[[Iterable[Batch]], Iterator[tuple[Batch, Encoded]]]


@contextmanager
def encoding(encoder: Encoder, num_proc: int) -> Iterator[Encodes]:
    """The function that gives each batch with what the encoder makes of it, in order, some batches ahead: in a thread
    of this process, which reads and writes beside it, or in `num_proc` others."""
    if num_proc == 1:
        pool, encode = ThreadPoolExecutor(1), encoder
    else:  # not forked: a fork copies locks of threads that it does not have
        pool, encode = ProcessPoolExecutor(num_proc, get_context("spawn"), begin, (encoder,)), encode_here
    try:
        yield partial(ahead, pool, encode, AHEAD * num_proc)
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(
    pool: Executor, encode: Callable[[Batch], Encoded], number: int, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, Encoded]]:
    """Each batch with what `encode` makes of it in a pool, where `number` are under way."""
    waiting: deque[tuple[Batch, Future[Encoded]]] = deque()
    for batch in batches:
        waiting.append((batch, pool.submit(encode, batch)))
        if len(waiting) >= number:
            first, future = waiting.popleft()
            yield first, future.result()
    yield from ((batch, future.result()) for batch, future in waiting)


OWN: list[Encoder] = []  # that of this process


def begin(encoder: Encoder) -> None:
    """Begin a process that tokenises. Its tokenizer shall not start a thread for every core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    OWN[:] = [encoder]


def encode_here(batch: Batch) -> Encoded:
    """What the encoder of this process makes of a batch."""
    return OWN[0](batch)
