"""`data=image_chat`: conversations with pictures, of which only what the assistant says is learned.

As with `data=chat`, every answer is a document: what a decoder would be given at that turn, by the chat template and
the processor of the parent, with the tokens of its pictures, and the answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from dlm.data.chat import COLUMNS, TURNS, from_sharegpt
from dlm.data.corpus import Corpus, Part
from dlm.data.encoder import Encoded
from dlm.data.encoding import refuse_mask
from dlm.data.external import External, Spec, WholeDocuments
from dlm.data.origin import Batch, Origin, Row
from dlm.data.packing import Document, Source
from dlm.data.picture_corpus import COUNTED, FILES, PictureCorpus, Pictured
from dlm.data.picture_files import Unreadable, file_of, opened, parts_of, placed
from dlm.data.pictures import Message, processed, rendered, require_processor
from dlm.data.text import key_of
from dlm.errors import one_line
from dlm.runs.digest import fingerprint

NAMED = COLUMNS | {"image": "image", "images": "images"}


class ImageChatEncoder:
    """Makes a document of every answer of a conversation, or of its last one. A row is a list of `messages` (role,
    content as text or as parts), a LLaVA list of `conversations` (from, value), or a `prompt` with its `completion`;
    its own pictures are in `image` or `images`; `columns` maps these names to other columns. Paths are relative to
    `folder`."""

    files, counted = FILES, COUNTED

    def __init__(self, processor: ProcessorMixin, columns: dict[str, str], turns: str, folder: Path):
        self.processor, self.columns, self.turns, self.folder = processor, columns, turns, folder
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self.special = sorted({str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special})

    def settings(self) -> dict[str, Any]:
        made_of = {"template": self.processor.chat_template, "columns": self.columns, "turns": self.turns}
        made_of |= {"processor": json.loads(json.dumps(self.processor.to_dict(), default=str, sort_keys=True))}
        made_of |= {"mask": self.tokenizer.mask_token_id, "folder": str(self.folder)}
        return {"kind": "image_chat", "version": 2} | made_of  # 2: pictures are upright, and BOS is there without any

    def __call__(self, batch: Batch) -> Encoded:
        documents: list[tuple[Document, int]] = []
        pictured, left_out, named = Pictured(), {}, []
        for number, row in enumerate(batch.rows, batch.first):
            name = f"row {number} of {batch.place}"
            try:
                messages, files = self.conversation(row, name)
                answers = self.documents(messages, files, name)
            except Unreadable as error:
                left_out[f"with {error.reason}"] = left_out.get(f"with {error.reason}", 0) + 1
                named.append(f"{name}: {error.reason} ({error.name})")
                continue
            if not answers:
                left_out["without an answer to a prompt"] = left_out.get("without an answer to a prompt", 0) + 1
                continue
            key = key_of(json.dumps([messages, fingerprint(files)], sort_keys=True))
            for document, used, prompt in answers if self.turns == "each" else answers[-1:]:
                documents.append((document, key))
                pictured.add(len(pictured.files), used, prompt)
            pictured.files += files
        return Encoded.of(documents, left_out, pictured.written(), named)

    def conversation(self, row: Row, name: str) -> tuple[list[Message], list[bytes]]:
        """The conversation in a row, with parts, and the files of its pictures in order. Raises `ValueError` if there
        is none, and `Unreadable` for one that cannot be used."""
        get = {key: row.get(column) for key, column in self.columns.items()}
        if get["messages"] is not None:
            messages = [{"role": turn.get("role"), "content": turn.get("content")} for turn in get["messages"]]
        elif get["conversations"] is not None:
            messages = from_sharegpt(get["conversations"])
        elif get["prompt"] is not None and get["completion"] is not None:
            pair = (("user", get["prompt"]), ("assistant", get["completion"]))
            messages = [{"role": role, "content": content} for role, content in pair]
        else:
            raise ValueError(
                f"{name} holds no conversation in messages or conversations or prompt and completion, but the columns "
                f"{[*row]}: name yours, as in data.columns={{prompt:question,completion:answer,image:picture}}"
            )
        for turn, message in enumerate(messages, 1):
            try:
                message["content"] = parts_of(message["content"])
            except ValueError as error:
                raise ValueError(f"{name}, turn {turn} {error}") from error
        own = [get["image"], *(get["images"] or [])]
        return self.with_files(placed(messages, own))

    def with_files(self, messages: list[Message]) -> tuple[list[Message], list[bytes]]:
        """Messages whose images are places only, and the files of their pictures."""
        files = []
        for part in (part for message in messages for part in message["content"]):
            if part["type"] == "image":
                files.append(file_of(part.pop("image"), self.folder))
            elif spelt := next((token for token in self.special if token in part["text"]), None):
                raise Unreadable("a message that spells a special token", spelt)
        return messages, files

    def documents(self, messages: list[Message], files: list[bytes], name: str) -> list[tuple[Document, int, str]]:
        """For each answer that has a prompt: the document, the number of pictures that it has, and its prompt."""
        documents = []
        for turn, message in enumerate(messages):
            said = "".join(part.get("text", "") for part in message["content"])
            if not turn or message["role"] != "assistant" or not said.strip():
                continue
            try:
                before = rendered(self.processor, messages[:turn])
                whole = self.processor.apply_chat_template(messages[: turn + 1])
            except (TemplateError, TypeError, KeyError, ValueError) as error:
                raise ValueError(f"the chat template cannot render {name}: {one_line(error)}") from error
            if not whole.startswith(before):
                raise ValueError(f"the chat template does not begin an answer as it asks for one, in {name}")
            used = sum(part["type"] == "image" for m in messages[:turn] for part in m["content"])
            given = self.given(before, files[:used])
            answer = self.tokenizer(self.ended(whole[len(before) :]), add_special_tokens=False)["input_ids"]
            answer += [self.tokenizer.eos_token_id] * (answer[-1:] != [self.tokenizer.eos_token_id])
            refuse_mask(self.tokenizer, [(name, given + answer)])
            documents.append((Document(given + answer, [False] * len(given) + [True] * len(answer)), used, before))
        return documents

    def given(self, prompt: str, files: list[bytes]) -> list[int]:
        """The token ids of a prompt with its pictures."""
        return processed(self.processor, prompt, [opened(file) for file in files])[0]

    def ended(self, answer: str) -> str:
        """An answer up to the token that ends its turn: the line break behind it is the template's."""
        return answer.rstrip() if answer.rstrip().endswith(tuple(self.special)) else answer


class ImageConversations:
    """The kind of a source that holds conversations with pictures (see `ImageChatEncoder`). `images` is the folder of
    their paths; None: that of the first file of `origin`. The `processor` is that of the parent, once it is loaded."""

    def __init__(self, origin: Origin, images: str | None, columns: dict[str, str] | None, turns: str):
        if unknown := set(columns or {}) - set(NAMED):
            raise ValueError(f"data.columns {sorted(unknown)} are unknown: choose from {[*NAMED]}")
        if turns not in TURNS:
            raise ValueError(f"data.turns {turns!r} is unknown: choose one of {', '.join(TURNS)}")
        self.origin, self.folder = origin, Path(images).expanduser() if images else None
        if self.folder and not self.folder.is_dir():
            raise ValueError(f"data.images {images!r} does not exist: name the folder of the pictures")
        self.columns, self.turns = NAMED | (columns or {}), turns
        self.processor: ProcessorMixin | None = None

    def encoder(self, tokenizer: PreTrainedTokenizerBase) -> ImageChatEncoder:
        processor, files = require_processor(self.processor, "data=image_chat"), self.origin.local
        folder = self.folder or (files[0].parent if files else Path())
        return ImageChatEncoder(processor, self.columns, self.turns, folder)

    def source(self, part: Part, length: int) -> Source:
        return WholeDocuments(part, length)


class ImageChat(External):
    """One source of conversations with pictures: a path, or the id of a dataset on the hub (see `Origin`)."""

    def __init__(
        self,
        path: str | list[str],
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        images: str | None = None,
        columns: dict[str, str] | None = None,
        turns: str = "each",
        held_out: str = "hash",
        **kwargs: Any,
    ):
        origin = Origin(path, name, split, revision)
        self.kind = ImageConversations(origin, images, columns, turns)
        super().__init__({"image_chat": Spec(origin, self.kind)}, held_out=held_out, **kwargs)

    @property
    def processor(self) -> ProcessorMixin | None:
        return self.kind.processor

    @processor.setter
    def processor(self, processor: ProcessorMixin | None) -> None:
        self.kind.processor = processor

    def corpus(self, name: str, tokenizer: PreTrainedTokenizerBase) -> Corpus:
        return PictureCorpus(super().corpus(name, tokenizer).folder, self.processor)
