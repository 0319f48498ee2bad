"""A picture and a line of facts of every attention pattern, from the predicate that training and decoding use.

A pattern that is added to `conf/attention` gets its picture with the next `python -m analysis.site`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from hydra.utils import instantiate
from jaxtyping import Bool
from omegaconf import OmegaConf
from torch import Tensor

from analysis.site.svg import box, document, path, text
from analysis.site.yamls import header, options
from dlm.attention.base import AttentionPattern
from dlm.markdown import table
from dlm.types import Rows

LENGTH, BLOCK = 16, 4  # tokens of the document that is drawn, and of its blocks
CELL, LEFT, TOP = 11, 60, 34  # pixels
# Who sees whom, by (row is clean, column is clean). Mid-tones that show on light and on dark.
KINDS = {
    (False, False): ("noisy sees noisy", "#2f7fc1"),
    (False, True): ("noisy sees clean", "#d9762b"),
    (True, True): ("clean sees clean", "#2f9e6e"),
    (True, False): ("clean sees noisy", "#d1495b"),
}

COLUMNS = ("attention", "streams", "noise level per", "cacheable", "clean_causal", "blockwise", "needs the shift")


def patterns() -> dict[str, AttentionPattern]:
    """Every option of `attention`, with blocks of `BLOCK` tokens."""
    return {file.stem: pattern_of(file) for file in options("attention")}


def pattern_of(file: Path) -> AttentionPattern:
    """The pattern of a YAML in `conf/attention`."""
    return instantiate(OmegaConf.create({"block_size": BLOCK, "attention": OmegaConf.load(file)})).attention


def streams(pattern: AttentionPattern) -> Rows:
    """One document as the pattern lays it out in training: [noisy ; clean], or the one stream that it has."""
    clean = [False] * pattern.noisy_stream + [True] * pattern.clean_stream
    position = torch.arange(LENGTH).repeat(len(clean))
    return Rows(torch.tensor(clean).repeat_interleave(LENGTH), torch.zeros_like(position), position)


def visible(pattern: AttentionPattern, rows: Rows) -> Bool[Tensor, "S S"]:
    """Which row sees which column."""
    return pattern.visible(rows[:, None], rows[None, :]).expand(len(rows.clean), len(rows.clean))


def picture(name: str, pattern: AttentionPattern) -> str:
    """The mask as an SVG: a row of squares says what one position reads."""
    rows = streams(pattern)
    sees, clean = visible(pattern, rows).tolist(), rows.clean.tolist()
    size = len(clean)
    side, kinds = size * CELL, {}
    for row, column, width in runs_of(sees, clean):
        step = f"M{LEFT + column * CELL} {TOP + row * CELL}h{width * CELL}v{CELL}h-{width * CELL}z"
        kinds.setdefault((clean[row], clean[column]), []).append(step)
    parts = [f'<path fill="{KINDS[kind][1]}" d="{"".join(steps)}"/>' for kind, steps in sorted(kinds.items())]
    parts += grid(size)
    for stream, start in streams_of(clean):
        middle = start * CELL + LENGTH * CELL // 2
        parts += [text(LEFT + middle, TOP - 10, stream), text(LEFT - 10, TOP + middle, stream, turned=True)]
    parts += legend([KINDS[kind] for kind in sorted(kinds)], TOP + side + 24)
    width = max(LEFT + side + 12, 250)
    return document(f"attention={name}: row sees column", width, TOP + side + 20 + 20 * len(kinds), parts)


def runs_of(sees: list[list[bool]], clean: list[bool]) -> Iterator[tuple[int, int, int]]:
    """(row, first column, number of columns) of what each row sees side by side in one stream."""
    for row, columns in enumerate(sees):
        for (_, seen), run in groupby(enumerate(columns), lambda item: (clean[item[0]], item[1])):
            squares = [column for column, _ in run]
            if seen:
                yield row, squares[0], len(squares)


def streams_of(clean: list[bool]) -> Iterator[tuple[str, int]]:
    """The name of each stream and where it begins."""
    for start in range(0, len(clean), LENGTH):
        yield ("clean" if clean[start] else "noisy"), start


def grid(size: int) -> Iterator[str]:
    """A thin line at every cell, a thicker one at every block, the thickest at every stream."""
    side = size * CELL
    for step, width, opacity in ((1, 0.5, 0.15), (BLOCK, 1, 0.45), (LENGTH, 1.5, 1)):
        across = "".join(f"M{LEFT} {TOP + i * CELL}h{side}" for i in range(0, size + 1, step))
        down = "".join(f"M{LEFT + i * CELL} {TOP}v{side}" for i in range(0, size + 1, step))
        yield path(across + down, width, opacity)


def legend(kinds: list[tuple[str, str]], top: int) -> Iterator[str]:
    for i, (words, colour) in enumerate(kinds):
        y = top + 20 * i - 10
        yield box(LEFT, y, CELL, CELL, colour) + text(LEFT + CELL + 8, y + CELL - 1, words, anchor="start")


def page() -> str:
    """The page that shows all patterns."""
    by_name = patterns()
    facts = [facts_of(name, pattern) for name, pattern in by_name.items()]
    sections = [
        "# Attention patterns",
        "Made by `python -m analysis.site` from the predicates in `dlm/attention/` and the headers in "
        f"`conf/attention/`. Each picture is one document of {LENGTH} tokens in blocks of {BLOCK}: a row of squares "
        "says what one position reads. [Concepts](concepts.md) says what the two streams are, and [Add a variant]"
        "(how_to/new_variant.md#an-attention-pattern) what the columns of the table mean.",
        table(COLUMNS, facts),
    ]
    for file in options("attention"):
        shown = f"![The mask of attention={file.stem}](pictures/mask_{file.stem}.svg)"
        sections += [f"## {file.stem}", f"{header(file).what}.", shown]
    return "\n\n".join(sections) + "\n"


def facts_of(name: str, pattern: AttentionPattern) -> list[str]:
    """A row of the table."""
    layout = {(True, False): "noisy", (False, True): "clean", (True, True): "[noisy ; clean]"}
    flags = (pattern.cacheable, pattern.clean_causal, pattern.blockwise, pattern.requires_token_shift)
    shape = layout[pattern.noisy_stream, pattern.clean_stream]
    return [f"[`{name}`](#{name})", shape, pattern.noise_per.value, *("yes" if flag else "no" for flag in flags)]
