"""Secrets stay out of what is written: the values of environment variables that hold one."""

from __future__ import annotations

import os
import re

NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
SHORTEST = 8  # shorter values are switches, and parts of other words


def redacted(text: str) -> str:
    """The text with the name of the variable in place of its value."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and NAMES.search(name):
            text = text.replace(value, f"<{name}>")
    return text
