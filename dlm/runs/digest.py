"""Digests of values, files and weights, all SHA-256 in hexadecimal digits.

Run ids and file names contain them, so the same content must always give the same digits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dlm.runs.cache import cache_folder

Buffer = bytes | memoryview

LARGE = 2**28  # bytes of a file whose checksum takes a second
RUN_DIGITS, FILE_DIGITS, WEIGHT_DIGITS = 12, 8, 16


def digest(values: Mapping[str, Any], digits: int = RUN_DIGITS) -> str:
    """The digest of JSON values, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:digits]


def checksum(file: Path) -> str:
    """The digest of a file's bytes, all 64 digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def kept_checksum(file: Path) -> str:
    """`checksum`, kept while the size and the modification time of the file stay the same; of a file of `LARGE` bytes
    or more, also in the cache folder: reading 100 GB takes minutes."""
    status = file.stat()
    return cached_checksum(file.absolute(), status.st_size, status.st_mtime_ns)


@cache
def cached_checksum(file: Path, size: int, mtime_ns: int) -> str:
    if size < LARGE:
        return checksum(file)
    kept = cache_folder() / "checksums" / digest({"file": str(file), "size": size, "mtime": mtime_ns}, 32)
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    value = checksum(file)
    with contextlib.suppress(OSError):  # a folder that cannot be written keeps nothing
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
        temporary.write_text(value, encoding="utf-8")
        temporary.replace(kept)
    return value


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
