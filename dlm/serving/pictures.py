"""Conversations about pictures, as the model's chat template lays them out, and the data URIs of clients, within the
server's limits. Nothing is fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers import ProcessorMixin

from dlm.config.settings import Limits
from dlm.data.picture_files import upright
from dlm.data.pictures import bare, place_of, rendered, require_processor
from dlm.errors import one_line
from dlm.watch.speaker import Speaker

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # Pillow would run other programs for some of the others
WITH_PLACES = ("auto", "chat")  # the templates that are the model's own


@dataclass(frozen=True)
class Shown:
    """A conversation in the model's template, and the pictures in its places."""

    text: str
    pictures: list[Image.Image]


def shows_pictures(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether the content of a message has parts, as it has where there are pictures."""
    return any(not isinstance(message["content"], str) for message in messages)


def places_pictures(speaker: Speaker, template: str) -> bool:
    """Whether a model reads images, and a template has places for them."""
    return bool(speaker.processor and speaker.processor.chat_template) and template in WITH_PLACES


def require_places(speaker: Speaker, template: str) -> ProcessorMixin:
    """The processor that puts pictures in their places. Raises `ValueError` for a model of text, and for a template
    without places."""
    processor = require_processor(speaker.processor, "a conversation")
    if template not in WITH_PLACES:
        raise ValueError(f"template={template} has no places for pictures: choose template=chat")
    return processor


def shown(speaker: Speaker, messages: Sequence[dict[str, Any]], template: str) -> Shown:
    """A conversation whose messages have texts or parts, of which images have their pictures. Raises `ValueError` as
    `require_places`, for a text that holds a place, and for messages that the template refuses."""
    processor = require_places(speaker, template)
    whole = [
        message | {"content": [{"type": "text", "text": c}] if isinstance(c := message["content"], str) else c}
        for message in messages
    ]
    parts = [part for message in whole for part in message["content"]]
    if any(part["type"] == "text" and place_of(processor) in part["text"] for part in parts):
        raise ValueError(f"a text holds {place_of(processor)!r}, which stands for a picture: leave it out")
    try:
        text = rendered(processor, bare(whole))
    except Exception as error:  # a template raises errors of its own
        raise ValueError(f"the chat template refuses these messages: {one_line(error)}") from error
    return Shown(text, [part["image"] for part in parts if part["type"] == "image"])


def opened(messages: Sequence[dict[str, Any]], limits: Limits) -> list[dict[str, Any]]:
    """The messages of a client with pictures in the places of their data URIs. Raises `ValueError` for what is no
    picture, and for what the limits exclude."""
    count = sum(part["type"] == "image" for m in messages if not isinstance(m["content"], str) for part in m["content"])
    if count > limits.pictures:
        raise ValueError(f"{count} pictures exceed this server's {limits.pictures}")

    def open_part(part: dict[str, Any]) -> dict[str, Any]:
        return part | {"image": picture_of(part["image"], limits.pixels)} if part["type"] == "image" else part

    return [
        message if isinstance(c := message["content"], str) else message | {"content": [*map(open_part, c)]}
        for message in messages
    ]


def picture_of(uri: str, max_pixels: int) -> Image.Image:
    """The picture of a data URI, in colours. Raises `ValueError` for what is none, or one of more pixels."""
    if not uri.startswith("data:"):
        raise ValueError(f"image_url {uri[:40]!r} is no data URI, data:image/png;base64,…: this server fetches nothing")
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(";base64,")[2], validate=True)), "r", FORMATS)
        size = picture.size
        if size[0] * size[1] <= max_pixels:
            return upright(picture)
    except Exception as error:  # Pillow raises many types
        raise ValueError(f"image_url holds no whole picture of the formats {', '.join(FORMATS)}") from error
    raise ValueError(f"a picture of {size[0]} x {size[1]} pixels exceeds this server's {max_pixels}")
