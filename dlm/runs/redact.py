"""Keeps secrets, such as API keys in environment variables, out of written files."""

from __future__ import annotations

import os
import re

NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
SHORTEST = 8  # shorter values are switches, and occur within other words


def redacted(text: str) -> str:
    """Replace the value of every secret environment variable in a text by the variable's name."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and NAMES.search(name):
            text = text.replace(value, f"<{name}>")
    return text
