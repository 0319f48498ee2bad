"""What an offline run of W&B logged, read from its file: a log of LevelDB's format with one protobuf in each record."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7


def payloads(data: bytes) -> Iterator[bytes]:
    """The records of a log. A block holds chunks, each with a checksum, a length and a type: 1 whole, 2 first,
    3 middle, 4 last."""
    at, parts = HEADER, b""  # the file has a header of its own
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if not kind:
            break
        parts = (b"" if kind in (1, 2) else parts) + data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):
            yield parts


@dataclass
class Logged:
    """The config, the tags, the group, the rows of the history, the last summary, the step metric of every metric, the
    uploaded files and the artifacts. `kinds` are those of all records."""

    folder: Path
    run: object = None
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)

    def column(self, name: str, by: str = "tokens") -> list[tuple]:
        return [(row.get(by), row[name]) for row in self.history if name in row]

    def table(self, name: str) -> dict:
        """The last table of a name."""
        path = self.column(name)[-1][1]["path"]
        return json.loads((self.folder / "files" / path).read_text(encoding="utf-8"))

    @property
    def names(self) -> set[str]:
        """Every name under which something was sent."""
        return {*self.summary}.union(*self.history)


def items(updates) -> dict:
    """The values of a record by key; a table or a picture is a dict, of which every record has one entry."""
    found = {}
    for item in updates:
        *path, last = item.nested_key or [item.key]
        place = found
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def read(folder: Path) -> Logged:
    """What is in the folder of an offline run."""
    (file,) = folder.glob("*.wandb")
    logged = Logged(folder)
    for payload in payloads(file.read_bytes()):
        record = Record.FromString(payload)
        logged.kinds.add(kind := record.WhichOneof("record_type"))
        if kind == "run":
            logged.run, logged.config = record.run, items(record.run.config.update)
        elif kind == "config":
            logged.config |= items(record.config.update)
        elif kind == "history":
            logged.history.append(items(record.history.item))
        elif kind == "summary":
            logged.summary |= items(record.summary.update)
        elif kind == "metric":
            logged.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            logged.artifacts.append(record.artifact.name)
    return logged


def read_all(run_folder: Path) -> list[Logged]:
    """Everything that a run logged offline, in the order in which it was."""
    return [read_whole(folder) for folder in sorted((run_folder / "wandb").glob("offline-run-*"))]


def read_whole(folder: Path) -> Logged:
    """The same, when its last record is written: another process does that, and nobody waits for it."""
    for _ in range(200):
        if "exit" in (found := read(folder)).kinds:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{folder} does not end: it has {found.kinds}")
