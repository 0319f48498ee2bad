"""The version of the evaluation items and of their scoring. It is part of the key of every stored measurement, so that
numbers for different items are never compared."""

from __future__ import annotations

from dataclasses import astuple
from functools import cache

from transformers import AutoTokenizer

from dlm.data import prose, tasks
from dlm.data.example import SPLITS, Example
from dlm.evaluation import cloze
from dlm.evaluation.likelihood import windows
from dlm.model.parent import resolve
from dlm.runs.digest import digest

# Raise it when the same weights would get another number for the same items: when the reference of an answer, the
# scoring of a text or the counting of forwards changes. Changed items are detected; speed needs no new version.
EVALUATION_VERSION = 2
FEW, LENGTH = 16, 128  # items of each kind to hash, as a changed generator changes the first ones; tokens of a row
TOKENIZER = "pkg://dlm/assets/tiny"  # any tokenizer will do; this one ships with the package


@cache
def added_version(families: tuple[str, ...] | None) -> str:
    """What `items_version` lacks where an evaluation asks these families of tasks: a digest of the first ones, and
    nothing for None, which means those of short answers."""
    if families is None:
        return ""
    first = {split: tasks.evaluation_set(split, FEW, families=families) for split in SPLITS}
    return "-" + digest({split: list(map(identity, examples)) for split, examples in first.items()})


def identity(example: Example) -> tuple[str, ...]:
    """What an example asks, and of which picture."""
    asked = (example.family, example.prompt, example.answer)
    return asked if example.key == example.prompt else (*asked, example.key)


@cache
def items_version() -> str:
    """A digest of the prose, of the first tasks, rows and cloze items, and of `EVALUATION_VERSION`."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(TOKENIZER))
    texts = list(prose.chapters("test")[:FEW])
    rows, num_bytes = windows(texts, tokenizer, LENGTH, FEW)
    return digest(
        {
            "version": EVALUATION_VERSION,
            "prose": {split: prose.chapters(split) for split in ("train", *SPLITS)},
            "tasks": {split: list(map(astuple, tasks.evaluation_set(split, FEW))) for split in SPLITS},
            "rows": [[row.x0.tolist(), row.maskable.tolist()] for row in rows],
            "bytes": num_bytes,
            "cloze": [astuple(item) for item in cloze.items(texts, tokenizer, FEW)],
        }
    )
