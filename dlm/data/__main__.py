"""Prepare, look at and check your own data before a training: `python -m dlm.data prepare|inspect|validate`, with the
options of `dlm.train`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from dlm.config.build import make, make_masking, make_processor, make_tokenizer
from dlm.config.command_line import hydra_command
from dlm.config.kinds import require_kinds
from dlm.config.settings import Data
from dlm.conversion.preparation import TRAIN_STREAM
from dlm.conversion.prepare import corrupt
from dlm.data.encoder import Encoded, Encoder
from dlm.data.external import External, summary_lines
from dlm.data.image_chat import ImageChat
from dlm.data.origin import Batch as SourceBatch
from dlm.data.packing import collate
from dlm.model.layout import Layout
from dlm.types import Batch, generator

SHOWN = 20  # problems
STYLES = {"given": "dim", "maskable": "default", "hidden, not scored": "black on yellow", "scored": "bold white on red"}


def data_of(cfg: DictConfig) -> tuple[External, PreTrainedTokenizerBase]:
    """The data of a config, not prepared yet, and the tokenizer of its parent."""
    require_kinds(cfg, Data)
    data = make(cfg.data)
    if not isinstance(data, External):
        raise ValueError(
            "this data is made by the code, and needs no preparation: choose data=text, chat, image_chat or mixed"
        )
    tokenizer = make_tokenizer(cfg.model)
    data.processor = make_processor(cfg.model, tokenizer) if isinstance(data, ImageChat) else None
    return data, tokenizer


def prepare(cfg: DictConfig) -> None:
    """Tokenise the data to the disk, and say what a training with this config reads of it."""
    data, _ = prepared(cfg)
    for name, corpus in data.corpora.items():
        print(f"{name}: {corpus.folder}")
    for line in summary_lines(data.summary(int(cfg.tokens) // data.length)):
        print(line)


def prepared(cfg: DictConfig) -> tuple[External, PreTrainedTokenizerBase]:
    """The data of a config with its rows."""
    data, tokenizer = data_of(cfg)
    pattern = make(cfg.attention)
    pattern.check(data.length, cfg.token_shift)
    data.prepare(tokenizer, pattern.tail, max(int(cfg.tokens) // data.length, data.batch_size), cfg.seed)
    return data, tokenizer


def inspect(cfg: DictConfig) -> None:
    """Print rows of the first micro-batch with what is given, maskable, hidden and scored."""
    data, tokenizer = prepared(cfg)
    layout = Layout(make(cfg.attention), tokenizer.mask_token_id, cfg.token_shift, None, False)
    batch = layout.scorable(collate([data.train_rows[n] for n in range(data.batch_size)]))
    noised = corrupt(layout, make_masking(cfg), batch, generator(cfg.seed, TRAIN_STREAM, 0, 0))
    first_view = slice(batch.x0.shape[1])
    masked, in_loss = noised.masked[:, first_view], noised.in_loss[:, first_view] & batch.targets
    console = Console()
    console.print(Text.assemble(*((f" {name} ", style) for name, style in STYLES.items())))
    for row in range(min(cfg.rows, data.batch_size)):
        console.rule(Text(f"row {row}"))
        console.print(painted(batch, masked, in_loss, row, tokenizer))


def painted(
    batch: Batch, masked: torch.Tensor, in_loss: torch.Tensor, row: int, tokenizer: PreTrainedTokenizerBase
) -> Text:
    """The tokens of a row without padding, each in its style, with an empty line between documents."""
    text, before = Text(), 0
    for token, maskable, hidden, scored, document in zip(
        *(of[row].tolist() for of in (batch.x0, batch.maskable, masked, in_loss, batch.document)), strict=True
    ):
        if document < 0:
            break
        name = "scored" if scored else "hidden, not scored" if hidden else "maskable" if maskable else "given"
        text.append("\n\n" * (document - before)).append(tokenizer.decode([token]), STYLES[name])
        before = document
    return text


def validate(cfg: DictConfig) -> None:
    """Read every row, write nothing, and print what cannot be used. The exit code is 1 if there is something."""
    data, tokenizer = data_of(cfg)
    num_problems = 0
    for spec in data.specs.values():
        encoder, rows, problems = spec.kind.encoder(tokenizer), 0, []
        try:
            for batch in spec.origin.batches():
                rows += len(batch.rows)
                problems += problems_of(batch, encoder, data.length)
        except ValueError as error:  # what follows cannot be read
            problems.append(str(error))
        for problem in problems[:SHOWN]:
            print(problem)
        print(f"{spec.origin.label}: {rows:,} rows, {len(problems):,} problems")
        num_problems += len(problems)
    if num_problems:
        raise SystemExit(1)


def problems_of(batch: SourceBatch, encoder: Encoder, length: int) -> Iterator[str]:
    """What is wrong with the rows of a batch for rows of `length` tokens."""
    try:
        made = encoder(batch)
    except ValueError:
        for one in one_by_one(batch):
            try:
                encoder(one)
            except ValueError as error:
                yield str(error)
        return
    yield from made.named
    if too_long(made, length):
        for one in one_by_one(batch):
            for tokens, number in too_long(encoder(one), length):
                yield (
                    f"row {one.first} of {one.place}: {tokens} tokens with {number} pictures, more than data.length "
                    f"{length}"
                )


def one_by_one(batch: SourceBatch) -> Iterator[SourceBatch]:
    """The rows of a batch, each alone."""
    return (replace(batch, first=batch.first + n, rows=[row]) for n, row in enumerate(batch.rows))


def too_long(made: Encoded, length: int) -> list[tuple[int, int]]:
    """The tokens and the number of pictures of documents with pictures that have more than `length` tokens."""
    pictures = made.beside.get("number", made.lengths * 0)
    return [(int(n), int(p)) for n, p in zip(made.lengths, pictures, strict=True) if p and n > length]


ACTIONS = {"prepare": prepare, "inspect": inspect, "validate": validate}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in ACTIONS:
        print(f"{__doc__}\n\n" + "\n".join(f"{n:10}{a.__doc__}" for n, a in ACTIONS.items()), file=sys.stderr)
        raise SystemExit(2)
    del sys.argv[1]
    hydra_command("data")(ACTIONS[name])()


if __name__ == "__main__":
    main()
