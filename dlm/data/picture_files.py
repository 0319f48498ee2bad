"""Pictures of a row of data: where they are, in which of its places they stand, and their files, whole and readable."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

PLACE = "<image>"  # in the text of a message, as LLaVA writes it
OF_PNG = {"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"}  # the modes that a PNG has


class Unreadable(Exception):
    """A picture that cannot be used: the `reason`, which is counted, and the `name` of the picture."""

    def __init__(self, reason: str, name: str):
        super().__init__(f"{name}: {reason}")
        self.reason, self.name = reason, name


def file_of(value: Any, folder: Path) -> bytes:
    """The file of a picture: of a path relative to `folder`, a data URI, what `datasets` has in an image column, or a
    picture of Pillow. Raises `Unreadable` if there is none, or not a whole one."""
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        (value if value.mode in OF_PNG else value.convert("RGB")).save(buffer, "PNG")
        return buffer.getvalue()
    name = "a picture"
    if isinstance(value, dict):
        value, name = value.get("bytes") or value.get("path") or value.get("url"), str(value.get("path") or name)
    if isinstance(value, str):
        value, name = read(value, folder), value[:80]
    if not isinstance(value, bytes):
        raise Unreadable("a missing picture", name)
    try:
        with Image.open(io.BytesIO(value)) as picture:
            picture.load()
    except Exception as error:  # Pillow raises many types; all mean that there is no picture
        raise Unreadable("a damaged picture", name) from error
    return value


def read(path: str, folder: Path) -> bytes:
    """The bytes of a path or a data URI. Raises `Unreadable` if there are none."""
    if path.startswith("data:"):
        try:
            return base64.b64decode(path.partition("base64,")[2], validate=True)
        except binascii.Error as error:
            raise Unreadable("a damaged picture", path[:40]) from error
    if path.startswith(("http:", "https:")):
        raise Unreadable("the address of a picture, which is not downloaded", path)
    try:
        return (folder / Path(path).expanduser()).read_bytes()
    except (OSError, RuntimeError, ValueError) as error:  # no file, no such home (~name), no path at all
        raise Unreadable("a missing picture", path) from error


def opened(file: bytes) -> Image.Image:
    """The picture of a file, upright and in colours."""
    return upright(Image.open(io.BytesIO(file)))


def upright(picture: Image.Image) -> Image.Image:
    """A picture in colours, turned as its file says that the camera was held; as it is if the file's Exif is damaged.
    Raises what Pillow raises for a damaged picture."""
    picture.load()
    try:
        turned = ImageOps.exif_transpose(picture)
    except Exception:  # Pillow raises many types for bytes that are no Exif, and the picture is whole
        turned = picture
    return turned.convert("RGB")


def read_pictures(paths: Iterable[str]) -> list[Image.Image]:
    """The pictures of files, of which relative paths begin at the working directory. Raises `ValueError` for one that
    is missing or damaged."""
    try:
        return [opened(file_of(path, Path.cwd())) for path in paths]
    except Unreadable as error:
        raise ValueError(f"image {error.name!r} is {error.reason}: name a picture that Pillow can open") from error


def parts_of(content: Any) -> list[dict[str, Any]]:
    """The parts of a message: texts, and images with their picture or, None, the next of the row's own. Raises
    `ValueError` for another content."""
    if isinstance(content, str):
        pieces = content.split(PLACE)
        parts = [{"type": "text", "text": pieces[0]}]
        for piece in pieces[1:]:
            parts += [{"type": "image", "image": None}, {"type": "text", "text": piece}]
        return [part for part in parts if part.get("text", True)]
    found = []
    for part in content if isinstance(content, list) else [None]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            found.append({"type": "text", "text": part["text"]})
        elif kind == "image":
            given = (part.get(key) for key in ("image", "path", "url", "bytes"))
            found.append({"type": "image", "image": next((value for value in given if value is not None), None)})
        elif kind == "image_url":
            of = part.get("image_url")
            found.append({"type": "image", "image": of.get("url") if isinstance(of, dict) else of})
        else:
            raise ValueError(f"holds neither text nor an image: {str(content)[:80]}")
    return found


def placed(messages: list[dict[str, Any]], own: Iterable[Any]) -> list[dict[str, Any]]:
    """Messages whose images have their pictures: where a part has none, the next of the row's `own`; without any place
    for these they come first of all. Raises `Unreadable` if there are more or fewer pictures than places."""
    waiting = [picture for picture in own if picture is not None]
    images = [part for message in messages for part in message["content"] if part["type"] == "image"]
    if waiting and not images:
        first = next((message for message in messages if message["role"] == "user"), messages[0])
        images = [{"type": "image", "image": None} for _ in waiting]
        first["content"] = images + first["content"]
    without = [part for part in images if part["image"] is None]
    if len(without) != len(waiting):
        raise Unreadable("more or fewer pictures than places for them", f"{len(waiting)} for {len(without)}")
    for part, picture in zip(without, waiting, strict=True):
        part["image"] = picture
    return messages
