"""All of the documentation that is made from the code, by its place."""

from __future__ import annotations

from pathlib import Path

from analysis.site import architecture_picture, configuration, mask_pictures
from analysis.site.yamls import ROOT

DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"


def generated() -> dict[Path, str]:
    """Every generated page and picture: its file and its text."""
    files = {DOCS / "configuration.md": configuration.page(), DOCS / "attention_patterns.md": mask_pictures.page()}
    for name, pattern in mask_pictures.patterns().items():
        files[PICTURES / f"mask_{name}.svg"] = mask_pictures.picture(name, pattern)
    return files | {PICTURES / "architecture.svg": architecture_picture.made()}
