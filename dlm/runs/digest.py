"""Digests of values, files and weights, all SHA-256 in hexadecimal digits.

Run ids and file names contain them, so the same content must always give the same digits.
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
    """The digest of JSON values, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:digits]


def checksum(file: Path) -> str:
    """The digest of a file's bytes, all 64 digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fingerprint(parts: Iterable[Buffer]) -> str:
    """The digest of the concatenated parts, 16 digits."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    return sha256.hexdigest()[:WEIGHT_DIGITS]


def weights_fingerprint(folder: Path) -> str:
    """The digest of the weight files in a model's folder, adapters included, 16 digits. (`Parent.fingerprint` is that
    of the weights in memory, independent of their files.)"""
    return fingerprint(bytes.fromhex(checksum(path)) for path in sorted(folder.rglob("*.safetensors")))
