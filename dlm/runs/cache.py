"""The folder of what can be made again, shared by all runs of a machine: prepared corpora, checksums of large files."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(chosen: str | None = None) -> Path:
    """The `chosen` folder, else $DLM_CACHE, else `dlm` in the user's cache folder."""
    folder = chosen or os.environ.get("DLM_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/dlm"
    return Path(folder).expanduser()
