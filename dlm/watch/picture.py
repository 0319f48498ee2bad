"""Pictures of a prompt, as the page shows them: in the page itself, and no larger than they are seen."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

SIDE = 512  # pixels of the longer side of a picture in a page, at most
FORMATS = {
    "png": {"optimize": True},
    "jpeg": {"quality": 85},
}  # drawings are smaller in the one, photographs in the other


@dataclass(frozen=True)
class Picture:
    """A picture by its name, its file as a data URI, and its size in pixels."""

    name: str
    source: str
    width: int
    height: int


def embedded_picture(name: str, picture: Image.Image) -> Picture:
    """A picture that a page can hold, made smaller to `SIDE` where it is larger."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    files = {kind: encoded(small, kind, options) for kind, options in FORMATS.items()}
    kind = min(files, key=lambda kind: len(files[kind]))
    source = f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode()}"
    return Picture(name, source, *small.size)


def encoded(picture: Image.Image, kind: str, options: dict[str, bool | int]) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
