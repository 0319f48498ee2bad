"""`data=chat`: conversations in the parent's own chat template, of which only what the assistant says is learned.

Every answer is a document of its own: what a decoder would be given at that turn, rendered by the template, and the
answer. So no block holds an answer together with what the user says to it, whatever the block size, and templates that
drop something of earlier turns (reasoning) are learned as they decode.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from dlm.data.corpus import Part
from dlm.data.encoder import Encoded
from dlm.data.encoding import refuse_mask
from dlm.data.external import External, Spec, WholeDocuments
from dlm.data.origin import Batch, Origin, Row
from dlm.data.packing import Document, Source
from dlm.data.text import key_of
from dlm.errors import one_line

PLAIN = "plain"  # instead of a template: the prompt and the completion as they stand
TURNS = ("each", "last")
SHAREGPT = {"human": "user", "gpt": "assistant"}  # roles, where they have another name
COLUMNS = {"messages": "messages", "conversations": "conversations", "prompt": "prompt", "completion": "completion"}

Message = dict[str, Any]


class ChatEncoder:
    """Makes a document of every answer of a conversation, or of its last one. A row is a list of `messages` (role,
    content), a ShareGPT list of `conversations` (from, value), or a `prompt` with its `completion`; `columns` maps
    these names to other columns. `template` is a text in Jinja, or `PLAIN`."""

    files: dict[str, type] = {}
    counted: dict[str, str] = {}

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, columns: dict[str, str], turns: str):
        self.tokenizer, self.template, self.columns, self.turns = tokenizer, template, columns, turns
        added = tokenizer.added_tokens_decoder.values()
        self.special = sorted({*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)})

    def settings(self) -> dict[str, Any]:
        made_of = {"template": self.template, "columns": self.columns, "turns": self.turns}
        return {"kind": "chat", "mask": self.tokenizer.mask_token_id} | made_of

    def __call__(self, batch: Batch) -> Encoded:
        documents, left_out = [], {}
        for number, row in enumerate(batch.rows, batch.first):
            name = f"row {number} of {batch.place}"
            messages = self.messages(row, name)
            answers = self.documents(messages, name)
            key = key_of(json.dumps(messages, sort_keys=True))
            documents += [(document, key) for document in (answers if self.turns == "each" else answers[-1:])]
            if not answers:
                left_out["without an answer to a prompt"] = left_out.get("without an answer to a prompt", 0) + 1
        return Encoded.of(documents, left_out)

    def messages(self, row: Row, name: str) -> list[Message]:
        """The conversation in a row. Raises `ValueError` if there is none."""
        get = {key: row.get(column) for key, column in self.columns.items()}
        if get["messages"] is not None:
            messages = get["messages"]
        elif get["conversations"] is not None:
            messages = from_sharegpt(get["conversations"])
        elif get["prompt"] is not None and get["completion"] is not None:
            pair = (("user", get["prompt"]), ("assistant", get["completion"]))
            messages = [
                m for role, part in pair for m in ([{"role": role, "content": part}] if is_text(part) else part)
            ]
        else:
            known = " or ".join(["messages", "conversations", "prompt and completion"])
            raise ValueError(
                f"{name} holds no conversation in {known}, but the columns {[*row]}: name yours, as in "
                "data.columns={prompt:question,completion:answer}"
            )
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        for turn, message in enumerate(messages, 1):
            if not is_text(message.get("role")) or not is_text(message.get("content", "")):
                raise ValueError(f"{name} has no role or no text in turn {turn}: {str(message)[:80]}")
        return messages

    def documents(self, messages: list[Message], name: str) -> list[Document]:
        """A document of every answer that has a prompt. Raises `ValueError` for what the template cannot render."""
        documents = []
        for turn, message in enumerate(messages):
            if turn and message["role"] == "assistant" and message.get("content", "").strip():
                prompt, answer = self.rendered(messages[: turn + 1], name)
                given, said = (self.ids(text, messages) for text in (prompt, answer))
                said += [self.tokenizer.eos_token_id] * (said[-1:] != [self.tokenizer.eos_token_id])
                refuse_mask(self.tokenizer, [(name, given + said)])
                if given:
                    documents.append(Document(given + said, [False] * len(given) + [True] * len(said)))
        return documents

    def rendered(self, messages: list[Message], name: str) -> tuple[str, str]:
        """What stands before the last message, and what the assistant says in it, with the token that ends its turn."""
        if self.template == PLAIN:
            if len(messages) != 2:
                raise ValueError(
                    f"{name} has {len(messages)} turns: data.template=plain needs one prompt and one answer"
                )
            return messages[0]["content"], messages[1]["content"]
        if "{% generation" in self.template or "{%- generation" in self.template:
            whole, spans = self.render(messages, name, return_assistant_tokens_mask=True)
            start, end = spans[0][-1]
            return whole[0][:start], whole[0][start:end]
        (before,), _ = self.render(messages[:-1], name, add_generation_prompt=True)
        (whole,), _ = self.render(messages, name)
        if not whole.startswith(before):
            raise ValueError(
                f"the chat template does not begin an answer as it asks for one, in {name} (it asks by "
                f"{before[-40:]!r}): mark answers with {{% generation %}} in a template of your own, data.template=FILE"
            )
        answer = whole[len(before) :]
        ended = answer.rstrip()  # the line break behind the end of the turn is the template's
        return before, ended if ended.endswith(tuple(self.special)) else answer

    def render(self, messages: list[Message], name: str, **options: bool) -> tuple[list[str], Any]:
        special = {key: str(token) for key, token in self.tokenizer.special_tokens_map.items()}
        try:
            return render_jinja_template([messages], chat_template=self.template, **options, **special)
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"the chat template cannot render {name}: {one_line(error)}") from error

    def ids(self, text: str, messages: list[Message]) -> list[int]:
        """The token ids of a rendered text. What a message spells are characters and never a special token."""
        pieces = [(text, self.template == PLAIN)]  # (text, is it of a message)
        contents = {form for m in messages for form in (m.get("content", ""), m.get("content", "").strip())}
        for content in sorted(contents, key=len, reverse=True):
            if any(token in content for token in self.special):
                pieces = [
                    part for piece in pieces for part in (split_at(piece[0], content) if not piece[1] else [piece])
                ]
        return [
            token
            for piece, is_content in pieces
            for token in self.tokenizer(piece, add_special_tokens=False, split_special_tokens=is_content)["input_ids"]
        ]


def split_at(text: str, content: str) -> list[tuple[str, bool]]:
    """The pieces of a text, and whether each of them is the content."""
    pieces = [(part, False) for part in text.split(content)]
    return [piece for n, piece in enumerate(pieces) for piece in ([(content, True)] if n else []) + [piece] if piece[0]]


def from_sharegpt(turns: list[dict[str, Any]]) -> list[Message]:
    """The messages of a ShareGPT conversation."""
    return [{"role": SHAREGPT.get(turn.get("from"), turn.get("from")), "content": turn.get("value")} for turn in turns]


def is_text(value: Any) -> bool:
    return isinstance(value, str)


class Conversations:
    """The kind of a source that holds conversations. `template` is `plain`, a file in Jinja or, None, the tokenizer's
    own; `columns` are the names of the columns (see `ChatEncoder`). `turns` says whether `each` answer or the `last` is
    learned."""

    def __init__(self, template: str | None = None, columns: dict[str, str] | None = None, turns: str = "each"):
        unknown = set(columns or {}) - set(COLUMNS)
        if unknown:
            raise ValueError(f"data.columns {sorted(unknown)} are unknown: choose from {[*COLUMNS]}")
        if turns not in TURNS:
            raise ValueError(f"data.turns {turns!r} is unknown: choose one of {', '.join(TURNS)}")
        self.template, self.columns, self.turns = template, COLUMNS | (columns or {}), turns

    def encoder(self, tokenizer: PreTrainedTokenizerBase) -> ChatEncoder:
        return ChatEncoder(tokenizer, self.template_of(tokenizer), self.columns, self.turns)

    def template_of(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text of the template. Raises `ValueError` if there is none."""
        if self.template == PLAIN:
            return PLAIN
        if self.template is None:
            if not tokenizer.chat_template:
                raise ValueError(
                    "the parent's tokenizer has no chat template: data.template=FILE names one in Jinja, and "
                    "data.template=plain learns completions of prompts as they stand"
                )
            return tokenizer.get_chat_template()
        file = Path(self.template).expanduser()
        if not file.is_file():
            raise ValueError(f"data.template {self.template!r} does not exist: name a file in Jinja, or plain")
        return file.read_text(encoding="utf-8")

    def source(self, part: Part, length: int) -> Source:
        return WholeDocuments(part, length)


class Chat(External):
    """One source of conversations (see `Conversations`): a path, or the id of a dataset on the hub (see `Origin`)."""

    def __init__(
        self,
        path: str | list[str],
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        template: str | None = None,
        columns: dict[str, str] | None = None,
        turns: str = "each",
        held_out: str = "hash",
        **kwargs: Any,
    ):
        spec = Spec(Origin(path, name, split, revision), Conversations(template, columns, turns))
        super().__init__({"chat": spec}, held_out=held_out, **kwargs)
