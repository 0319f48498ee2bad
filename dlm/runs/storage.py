"""Files that are whole or not there, and that say when they are damaged.

A file is written to a temporary name beside it, synced and renamed. JSON carries a checksum of itself; other files have
theirs in a run's record. What is needed of the file system: `rename` replaces a file at once (POSIX; NFS as seen from
one host), which object stores mounted as folders do not promise.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from pathlib import Path
from typing import Any

from dlm.runs.digest import checksum, digest

SEALED, CHECKSUM = "sealed", "checksum"  # two, so that no flipped bit can make a file seem to be from before checksums
JSON_DIGITS = 16  # of the checksum in a JSON file
FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk every byte counts
        raise


def write_json(path: Path, values: dict[str, Any]) -> None:
    """A JSON object with its own checksum in it."""
    write_atomically(path, json.dumps(values | {SEALED: True, CHECKSUM: digest(values, JSON_DIGITS)}, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, its checksum checked where it has one (those from before checksums have none).
    `ValueError` where it is damaged."""
    values = json.loads(path.read_bytes())
    if not isinstance(values, dict):
        raise ValueError(f"it holds {type(values).__name__}, not an object")
    sealed, found = values.pop(SEALED, None), values.pop(CHECKSUM, None)
    if (sealed or found) and not (sealed and found == digest(values, JSON_DIGITS)):
        raise ValueError("its checksum is wrong")
    return values


def digests(folder: Path, paths: list[Path]) -> dict[str, str]:
    """The SHA-256 of files, by their path inside a folder."""
    return {str(path.relative_to(folder)): checksum(path) for path in sorted(p for p in paths if p.is_file())}


def damaged(folder: Path, expected: dict[str, str]) -> list[str]:
    """Those files of `digests` that are missing or have changed."""
    found = digests(folder, [folder / name for name in expected])
    return [name for name, digest in expected.items() if found.get(name) != digest]


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error; torch and safetensors wrap what the system says in their own errors."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:  # a chain can be a ring
        if getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
