"""Corpora in tests."""

import json
from pathlib import Path

from dlm.attention.block import Block
from dlm.data.corpus import Corpus
from dlm.data.text import Text


def texts(number: int, begin: int = 0) -> list[str]:
    return [f"document {i} " + "of some words" * (i % 7) for i in range(begin, begin + number)]


def jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def data_of(tokenizer, path, **options):
    path = path if isinstance(path, list) else str(path)
    data = Text(path=path, length=32, batch_size=4, val_rows=2, **options)
    data.prepare(tokenizer, Block(8).tail, 64, 0)
    return data


def text_of(corpus: Corpus, tokenizer) -> list[str]:
    return [tokenizer.decode(corpus.ids(n)[:-1]) for n in range(len(corpus))]


def text_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"This is paragraph {i} of a text that is short." for i in range(60)))
    return file
