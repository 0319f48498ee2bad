"""Short names of contents, all SHA-256 in hexadecimal digits: of values, of files, of weights.

Ids of runs and names of files are made of them, so the same content has to give the same digits for ever.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Buffer = bytes | memoryview

RUN_DIGITS, FILE_DIGITS, WEIGHT_DIGITS = 12, 8, 16


def digest(values: Mapping[str, Any], digits: int = RUN_DIGITS) -> str:
    """Of values that JSON can hold, in whatever order their keys come."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:digits]


def checksum(file: Path) -> str:
    """Of a file's bytes, all 64 digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fingerprint(parts: Iterable[Buffer]) -> str:
    """Of bytes, as if they were one after the other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:WEIGHT_DIGITS]


def weights_fingerprint(folder: Path) -> str:
    """Of the weights in a model's folder, adapters included, as they lie on the disk. (`Parent.fingerprint` is of the
    weights in memory, in whatever files they were.)"""
    return fingerprint(bytes.fromhex(checksum(path)) for path in sorted(folder.rglob("*.safetensors")))
