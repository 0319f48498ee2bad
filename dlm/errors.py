"""Errors inside the messages of other errors."""

from __future__ import annotations


def one_line(error: Exception) -> str:
    """The first line of an error, for a message inside a message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
