"""What an offline run of W&B logged, read from its file: a log of LevelDB's format with one protobuf in each record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)

    def column(self, name: str, by: str = "tokens") -> list[tuple[Any, Any]]:
        """The pairs of (`by`, `name`) of the rows that have `name`."""
        return [(row.get(by), row[name]) for row in self.history if name in row]

    def table(self, name: str) -> dict[str, Any]:
        """The last table of a name."""
        path = self.column(name)[-1][1]["path"]
        return json.loads(Path(path).read_text(encoding="utf-8"))

    @property
    def names(self) -> set[str]:
        """Every name under which something was sent."""
        return {*self.summary}.union(*self.history)


def located(row: dict[str, Any], files: Path) -> dict[str, Any]:
    """A row of the history, with the files of its tables and pictures where they are below `files`."""
    return {
        name: value | {"path": str(files / value["path"])} if isinstance(value, dict) and "path" in value else value
        for name, value in row.items()
    }


def items(updates: Any) -> dict[str, Any]:
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
    from wandb.proto.wandb_internal_pb2 import Record

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
            logged.history.append(located(items(record.history.item), folder / "files"))
        elif kind == "summary":
            logged.summary |= items(record.summary.update)
        elif kind == "metric":
            logged.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            logged.artifacts.append(record.artifact.name)
    return logged
