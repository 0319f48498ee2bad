"""What evaluations ask and how they judge it, as one version. It is part of the key of every measurement that is kept,
so that numbers for different items are never compared."""

from __future__ import annotations

from dataclasses import astuple
from functools import cache

from transformers import AutoTokenizer

from dlm.data import prose, tasks
from dlm.evaluation import cloze
from dlm.evaluation.likelihood import windows
from dlm.model.parent import resolve
from dlm.runs.digest import digest

# Raise it when the same weights would get another number for the same items: when what an answer is compared with, how
# a text is scored or what counts as a forward changes. Other items, and mere speed, need nothing.
EVALUATION_VERSION = 1
FEW, LENGTH = 16, 128  # items of each kind: what changes how items are made changes the first ones
TOKENIZER = "pkg://dlm/assets/tiny"  # any will do, and this one is always there


@cache
def items_version() -> str:
    """A digest of all prose, of the first tasks, rows and cloze items, and of `EVALUATION_VERSION`."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(TOKENIZER))
    texts = list(prose.chapters("test")[:FEW])
    rows, num_bytes = windows(texts, tokenizer, LENGTH, FEW)
    return digest(
        {
            "version": EVALUATION_VERSION,
            "prose": {split: prose.chapters(split) for split in ("train", *tasks.SPLITS)},
            "tasks": {split: list(map(astuple, tasks.evaluation_set(split, FEW))) for split in tasks.SPLITS},
            "rows": [[row.x0.tolist(), row.maskable.tolist()] for row in rows],
            "bytes": num_bytes,
            "cloze": [astuple(item) for item in cloze.items(texts, tokenizer, FEW)],
        }
    )
