"""Prepares a corpus once: all processes, jobs and resumed runs that need the same one share it, and wait for it.

It is written to a temporary folder, which is renamed. Every `CHUNK` tokens what is written is made durable, and
`progress.json` says how far it is: a preparation that was interrupted goes on from there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import SoftFileLease, Timeout
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from dlm.data.corpus import COLUMNS, RECORD, Corpus, mapped, split_by_hash
from dlm.data.encoder import Encoded, Encoder, encoding
from dlm.data.origin import Batch, Origin
from dlm.runs.cache import cache_folder
from dlm.runs.digest import checksum, digest, fingerprint
from dlm.runs.storage import read_json, write_json

VERSION = 1  # of the layout and of what encoders make of a row
CHUNK = 2**22  # tokens between two points from which an interrupted preparation can go on
PROGRESS = "progress.json"
LEASE_SECONDS = 60.0
NAMED = 10  # rows that were left out


def prepared(origin: Origin, encoder: Encoder, cache: str | None = None, num_proc: int = 1) -> Corpus:
    """The corpus of an origin, made of it by `num_proc` processes unless it is there. Raises `ValueError` for rows that
    cannot be read."""
    made_of = {"origin": origin.identity(), "encoder": encoder.settings(), "tokenizer": identity(encoder.tokenizer)}
    folder = cache_folder(cache) / "corpora" / digest(made_of | {"version": VERSION}, 24)
    if not (folder / RECORD).exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            make(folder, origin, encoder, num_proc, made_of)
        except OSError as error:
            raise ValueError(
                f"the corpus of {origin.label} cannot be written to {str(folder)!r} ({error}): free space, or choose "
                "another folder with data.cache=FOLDER"
            ) from error
    return Corpus(folder)


def make(folder: Path, origin: Origin, encoder: Encoder, num_proc: int, made_of: dict[str, Any]) -> None:
    """Write a corpus, alone, or wait until another process has written it."""
    claim = SoftFileLease(
        folder.with_suffix(".lock"),
        lease_duration=LEASE_SECONDS,
        thread_local=False,
        on_compromise=lambda _: os.kill(os.getpid(), signal.SIGINT),  # another process writes these files by now
    )
    try:
        held = claim.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that prepares {origin.label}", file=sys.stderr)
        held = claim.acquire(poll_interval=0.5)
    with held:
        if not (folder / RECORD).exists():
            write(folder, origin, encoder, num_proc, made_of)


def write(folder: Path, origin: Origin, encoder: Encoder, num_proc: int, made_of: dict[str, Any]) -> None:
    """Write a corpus under a temporary name, from where an interrupted preparation stopped."""
    unfinished, begun = folder.with_suffix(".partial"), time.monotonic()
    progress = Progress.of(unfinished, encoder.tokenizer)
    print(f"preparing {origin.label} in {folder}" + (f", from document {progress.documents:,} on" * progress.is_begun))
    try:
        with Writer(unfinished, progress, encoder) as writer, encoding(encoder, num_proc) as encoded:
            bar = tqdm(initial=progress.tokens, unit=" tokens", unit_scale=True, disable=None, leave=False)
            for batch, made in encoded(origin.batches(progress.unit, progress.row)):
                writer.add(batch, made)
                bar.update(int(made.lengths.sum()))
            bar.close()
    except ValueError:  # of these rows no corpus can be made
        shutil.rmtree(unfinished)
        raise
    keys, ends = (mapped(unfinished / f"{name}.bin", COLUMNS[name]) for name in ("keys", "ends"))
    split_by_hash(unfinished, keys, ends)
    content = fingerprint(
        bytes.fromhex(checksum(unfinished / f"{name}.bin")) for name in ("tokens", *COLUMNS, *encoder.files)
    )
    amount = {"documents": progress.documents, "tokens": progress.tokens, "left_out": progress.left_out}
    write_json(unfinished / RECORD, made_of | amount | {"dtype": progress.dtype, "fingerprint": content})
    (unfinished / PROGRESS).unlink(missing_ok=True)
    unfinished.replace(folder)
    seconds = time.monotonic() - begun
    print(f"prepared {progress.documents:,} documents of {progress.tokens:,} tokens in {seconds:.0f} s")
    say_left_out(progress)


def say_left_out(progress: Progress) -> None:
    """Print on stderr how many rows are not in a corpus, and the first of those that are named."""
    for reason, number in progress.left_out.items() if progress.named else ():
        print(f"left out: {number:,} rows {reason}", file=sys.stderr)
    if progress.named:
        more = "…" * (sum(progress.left_out.values()) > len(progress.named))
        print(f"among them {'; '.join(progress.named)}{more}", file=sys.stderr)


@dataclass
class Progress:
    """How far a preparation is: what is written, and the unit and the row of the origin that come next."""

    dtype: str
    unit: int = 0
    row: int = 0
    documents: int = 0
    tokens: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    beside: dict[str, int] = field(default_factory=dict)  # the items of further files

    @classmethod
    def of(cls, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Progress:
        """That of a folder; a new one where there is none, or where it is damaged."""
        try:
            return cls(**read_json(folder / PROGRESS))
        except (OSError, ValueError, TypeError):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            return cls("uint16" if len(tokenizer) <= 2**16 else "uint32")

    @property
    def is_begun(self) -> bool:
        return self.unit > 0 or self.row > 0


class Writer:
    """Appends documents to the files of a corpus, behind those that `progress` counts."""

    def __init__(self, folder: Path, progress: Progress, encoder: Encoder):
        self.folder, self.progress, self.durable = folder, progress, progress.tokens
        self.further, self.counted, self.files = encoder.files, encoder.counted, ExitStack()
        kinds = {"tokens": progress.dtype} | COLUMNS | dict(encoder.files)
        self.kinds = {name: np.dtype(kind) for name, kind in kinds.items()}

    def __enter__(self) -> Writer:
        self.opened = {}
        for name, kind in self.kinds.items():
            file = self.files.enter_context((self.folder / f"{name}.bin").open("ab"))
            items = self.progress.tokens if name == "tokens" else self.progress.documents
            items = self.progress.beside.get(name, 0) if name in self.further else items
            file.truncate(kind.itemsize * items)
            self.opened[name] = file
        return self

    def __exit__(self, *error: object) -> None:
        self.files.close()

    def add(self, batch: Batch, made: Encoded) -> None:
        """Write what was made of a batch."""
        done, beside = self.progress, dict(self.progress.beside)
        columns = {"tokens": made.tokens, "ends": done.tokens + np.cumsum(made.lengths)}
        for name, values in (columns | {"answers": made.answers, "keys": made.keys}).items():
            self.opened[name].write(values.astype(self.kinds[name]).data)
        for name, values in made.beside.items():
            base = beside.get(self.counted.get(name), 0)
            self.opened[name].write((base + values if base else values).astype(self.kinds[name]).data)
        done.beside = {name: beside.get(name, 0) + len(values) for name, values in made.beside.items()}
        done.named += made.named[: NAMED - len(done.named)]
        done.unit, done.row = batch.unit, batch.first - 1 + len(batch.rows)
        done.documents, done.tokens = done.documents + len(made.lengths), done.tokens + len(made.tokens)
        for reason, number in made.left_out.items():
            done.left_out[reason] = done.left_out.get(reason, 0) + number
        if done.tokens - self.durable >= CHUNK:
            self.keep()

    def keep(self) -> None:
        """Make durable what is written."""
        for file in self.opened.values():
            file.flush()
            os.fsync(file.fileno())
        write_json(self.folder / PROGRESS, vars(self.progress))
        self.durable = self.progress.tokens


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that decides the tokens of a text."""
    tokenizer("")  # resets truncation and padding of an earlier call, which are part of the serialization
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return fingerprint([json.dumps([type(tokenizer).__name__, backend, special], sort_keys=True).encode()])
