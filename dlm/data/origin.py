"""Where rows come from: files, folders, globs and lists of them, saved datasets, and datasets of the hub.

`datasets` reads them as a stream, so that no more than a batch of them is in memory or, of a hub, on the disk.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from dlm.errors import one_line
from dlm.runs.digest import kept_checksum

BATCH = 256  # rows that are read, tokenised and written together
FORMATS = {
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".zst", ".xz")
SAVED = ("dataset_info.json", "dataset_dict.json")  # the marks of a folder that `save_to_disk` has written
OPTIONS = {
    ".txt": {"sample_by": "paragraph"},
    ".csv": {"keep_default_na": False},  # the word NA is text, not a missing value
    ".tsv": {"keep_default_na": False, "sep": "\t"},
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Rows that follow one another in a `unit` (a file or dataset, by its number). `place` names it in messages, and
    the first row has the number `first`, from 1."""

    unit: int
    place: str
    first: int
    rows: list[Row]


@dataclass(frozen=True)
class Origin:
    """One or several files, folders or globs; a folder of `save_to_disk`; or the id of a dataset on the hub, with its
    configuration `name` and `revision`. `split` is that of a saved dataset or of the hub's. `option` is the config
    option that names the path, for messages. Raises `ValueError` for what cannot be read."""

    path: str | list[str]
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    option: str = "data.path"

    @property
    def label(self) -> str:
        return f"{self.option} {self.path!r}"

    @property
    def saved(self) -> Path | None:
        """The folder that `save_to_disk` has written, if the path is one."""
        folder = None if isinstance(self.path, list) else Path(self.path).expanduser()
        return folder if folder and any((folder / mark).is_file() for mark in SAVED) else None

    @property
    def local(self) -> list[Path]:
        """The local files, in order; none for a dataset of the hub."""
        if self.saved:
            return sorted(path for path in self.saved.rglob("*") if path.is_file())
        if not isinstance(self.path, list):
            return self.files(self.path)
        if not self.path:
            raise ValueError(f"{self.label} is empty: name at least one file")
        of_paths = [(path, self.files(path)) for path in self.path]
        for path in (path for path, files in of_paths if not files):
            raise ValueError(f"{self.option} {path!r} does not exist: a list holds files, folders and globs")
        return [file for _, files in of_paths for file in files]

    def files(self, path: str) -> list[Path]:
        """The files that one path names; [] if it can only be a hub id."""
        if path == MISSING:
            raise ValueError(f"{self.option} is not set: give {self.option}=VALUE")
        whole = Path(path).expanduser()
        if whole.is_file():
            return [whole]
        if whole.is_dir():
            files = [file for file in whole.rglob("*") if format_of(file) and not file.name.startswith(".")]
            if not files:
                raise ValueError(f"{self.option} {path!r} is a folder without any {kinds()}")
            return sorted(files)
        if glob.has_magic(path):
            matching = [Path(name) for name in glob.glob(str(whole), recursive=True)]
            if not matching:
                raise ValueError(f"{self.option} {path!r} matches no file")
            return sorted(file for file in matching if file.is_file())
        if format_of(whole):
            raise ValueError(f"{self.option} {path!r} does not exist: name a file that does, or a hub id")
        return []

    def identity(self) -> dict[str, Any]:
        """What decides the rows: the contents of local files in their order, or the names of a dataset on the hub."""
        if files := self.local:
            split = self.split if self.saved else None
            return {"files": [[suffix_of(file), kept_checksum(file)] for file in files], "split": split}
        return {"id": self.path, "name": self.name, "split": self.split, "revision": self.revision}

    def batches(self, unit: int = 0, row: int = 0) -> Iterator[Batch]:
        """All rows in order, from the row behind the first `row` of a unit on."""
        datasets = [(self.label, None)] if self.saved or not self.local else [(str(file), file) for file in self.local]
        for number, (place, file) in list(enumerate(datasets))[unit:]:
            place = self.label if file is None or len(datasets) == 1 else f"{self.option} {place!r}"
            done, stream = row if number == unit else 0, None
            while True:
                try:
                    stream = stream or rows_of(self.opened(file), done)
                    rows = next(stream, None)
                except Exception as error:  # datasets raises many types; all mean that the data cannot be read
                    if type(error) is ValueError:  # and not of pyarrow
                        raise
                    raise ValueError(f"{place} could not be read: {one_line(error.__cause__ or error)}") from error
                if rows is None:
                    break
                yield Batch(number, place, done + 1, rows)
                done += len(rows)

    def opened(self, file: Path | None) -> Any:
        """A dataset of `datasets`: of a file, or of the saved or hub dataset."""
        from datasets import DatasetDict, load_dataset, load_from_disk

        if file is None and not self.saved:
            offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")  # only what was downloaded whole is there
            return load_dataset(self.path, self.name, split=self.split, revision=self.revision, streaming=not offline)
        if file is None:
            dataset = load_from_disk(str(self.saved))
            if not isinstance(dataset, DatasetDict):
                return dataset
            if self.split not in dataset:
                raise ValueError(f"{self.label} has no split {self.split!r}: choose one of {[*dataset]}")
            return dataset[self.split]
        if not (suffix := format_of(file)):
            raise ValueError(f"{self.label} is not text: {file.suffix!r} is not one of {kinds()}")
        if not file.stat().st_size:
            raise ValueError(f"{self.option} {str(file)!r} is empty: name a file that holds text")
        options = OPTIONS.get(suffix, {})
        return load_dataset(FORMATS[suffix], data_files=[str(file)], split="train", streaming=True, **options)


def rows_of(dataset: Any, done: int) -> Iterator[list[Row]]:
    """The rows of a dataset behind the first `done`, in batches."""
    for columns in (dataset.skip(done) if done else dataset).iter(BATCH):
        yield [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def suffix_of(file: Path) -> str:
    """The suffix that says the format: `.jsonl` of `web.jsonl.gz`."""
    return Path(file.stem).suffix if file.suffix in COMPRESSIONS else file.suffix


def format_of(file: Path) -> str | None:
    """The suffix of a file whose format is known."""
    return suffix if (suffix := suffix_of(file)) in FORMATS else None


def kinds() -> str:
    return f"{', '.join(FORMATS)} (also with {', '.join(COMPRESSIONS)})"
