"""`data=text`: documents of plain text, of which random windows are drawn."""

from __future__ import annotations

import hashlib
from typing import Any

from transformers import PreTrainedTokenizerBase

from dlm.data.corpus import Part
from dlm.data.encoder import Encoded
from dlm.data.encoding import encode, refuse_mask
from dlm.data.external import CorpusWindows, External, Spec
from dlm.data.origin import Batch, Origin
from dlm.data.packing import Document, Source


class TextEncoder:
    """The text in the column `field` of a row, with EOS at its end, is a document; a row without text is left out."""

    files: dict[str, type] = {}
    counted: dict[str, str] = {}

    def __init__(self, tokenizer: PreTrainedTokenizerBase, field: str):
        self.tokenizer, self.field = tokenizer, field

    def settings(self) -> dict[str, Any]:
        return {"kind": "text", "field": self.field, "mask": self.tokenizer.mask_token_id}

    def __call__(self, batch: Batch) -> Encoded:
        texts = {batch.first + n: self.text(row, batch, batch.first + n) for n, row in enumerate(batch.rows)}
        texts = {number: text for number, text in texts.items() if text.strip()}
        encoded = encode(self.tokenizer, [*texts.values()])
        refuse_mask(self.tokenizer, zip((f"document {n} of {batch.place}" for n in texts), encoded, strict=True))
        end = [self.tokenizer.eos_token_id]
        documents = [
            (Document(ids + end, [True] * (len(ids) + 1)), key_of(text))
            for ids, text in zip(encoded, texts.values(), strict=True)
            if ids
        ]
        empty = len(batch.rows) - len(documents)
        return Encoded.of(documents, {"empty": empty} if empty else {})

    def text(self, row: dict[str, Any], batch: Batch, number: int) -> str:
        if self.field not in row:
            raise ValueError(f"data.field {self.field!r} is not a column of {batch.place}: {[*row]}")
        if not isinstance(text := row[self.field], str):
            raise ValueError(
                f"data.field {self.field!r} of {batch.place} does not hold text in document {number}, but "
                f"{'nothing' if text is None else repr(text)[:80]}: give it text, or leave the document out"
            )
        return text


class Texts:
    """The kind of a source that holds plain text in the column `field`."""

    def __init__(self, field: str = "text"):
        self.field = field

    def encoder(self, tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
        return TextEncoder(tokenizer, self.field)

    def source(self, part: Part, length: int) -> Source:
        return CorpusWindows(part)


class Text(External):
    """One source of text: a path, or the id of a dataset on the hub (see `Origin`). The column `field` holds it."""

    def __init__(
        self,
        path: str | list[str],
        field: str = "text",
        split: str = "train",
        name: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ):
        super().__init__({"text": Spec(Origin(path, name, split, revision), Texts(field))}, **kwargs)


def key_of(text: str) -> int:
    """A hash of a row's text, of 64 bits: equal rows have equal ones."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())
