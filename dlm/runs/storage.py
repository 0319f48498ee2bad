"""Writes files atomically and detects damaged ones.

A file is written to a temporary name beside it, synced and renamed. JSON files hold their own checksum; those of other
files are in the run's record. The file system must replace files atomically on `rename` (POSIX; NFS as seen from one
host), which object stores mounted as folders do not guarantee.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from pathlib import Path
from typing import Any

from dlm.runs.digest import checksum, digest

# Two keys, so that one flipped bit cannot make a file look like one without a checksum.
SEALED, CHECKSUM = "sealed", "checksum"
JSON_DIGITS = 16  # of the checksum in a JSON file
FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file atomically: afterwards it is either the old or the new one."""
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
    """Write a JSON object together with its checksum."""
    write_atomically(path, json.dumps(values | {SEALED: True, CHECKSUM: digest(values, JSON_DIGITS)}, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object and verify its checksum, if it has one. Raises `ValueError` if the file is damaged."""
    values = json.loads(path.read_bytes())
    if not isinstance(values, dict):
        raise ValueError(f"it holds {type(values).__name__}, not an object")
    sealed, expected = values.pop(SEALED, None), values.pop(CHECKSUM, None)
    if (sealed or expected) and not (sealed and expected == digest(values, JSON_DIGITS)):
        raise ValueError("its checksum is wrong")
    return values


def digests(folder: Path, paths: list[Path]) -> dict[str, str]:
    """The SHA-256 of files by their path relative to a folder."""
    return {str(path.relative_to(folder)): checksum(path) for path in sorted(p for p in paths if p.is_file())}


def damaged(folder: Path, expected: dict[str, str]) -> list[str]:
    """The files of a folder that are missing or do not have their `expected` digest."""
    actual = digests(folder, [folder / name for name in expected])
    return [name for name, digest in expected.items() if actual.get(name) != digest]


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk caused an error; torch and safetensors wrap the system's message in errors of their own."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:  # a chain of causes can be circular
        if getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
