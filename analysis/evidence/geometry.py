"""What the length of the answers allows: how many blocks one touches, and how many tokens a forward can commit.

An answer of T tokens that begins anywhere in a block touches 1 + (T − 1) / block of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

BLOCKS = 1.5  # of an answer, on average: with fewer, most answers lie in one block, and its size is not what is tested
SHARE = 0.9  # of the ceiling of tokens per forward: a target above it cannot be reached
CEILINGS = (
    "The structural ceiling of tokens per forward (TPF): one forward for every block that an answer, with its EOS, "
    "touches, if answers begin anywhere in a block."
)
CEILING_DIGITS = {"highest TPF": 2, "blocks per answer": 2}


def tokens_per_answer(parent: pd.DataFrame) -> float:
    """The mean tokens of an answer, with EOS: the forwards of the AR parent, which writes one in each."""
    return float(parent["nfe"].iloc[0])


def blocks_per_answer(tokens: float, block: float) -> float:
    """The blocks that an answer of as many tokens touches on average."""
    return 1 + (tokens - 1) / block


def with_several_blocks(rows: pd.DataFrame, column: str, parent: pd.DataFrame) -> pd.DataFrame:
    """The rows whose blocks, in `column`, are so short that an answer touches at least `BLOCKS` of them."""
    if rows.empty or parent.empty:
        return rows
    return rows[blocks_per_answer(tokens_per_answer(parent), rows[column].astype(float)) >= BLOCKS]


def too_few_blocks(rows: pd.DataFrame, column: str, least: int, parent: pd.DataFrame, what: str) -> str:
    """Why the blocks in `column` cannot be compared, if fewer than `least` did `what`; else, or if nothing was
    measured, ""."""
    if rows.empty or rows[column].nunique() >= least or parent.empty:
        return ""
    short = f"short enough for answers of {tokens_per_answer(parent):.1f} tokens ({BLOCKS:g} blocks each or more)"
    return f"fewer than {least} block sizes that are {short} {what}"


def ceiling(answer_tokens: float, block: float) -> float:
    """The most tokens per forward: one forward for every block that an answer touches."""
    return answer_tokens / blocks_per_answer(answer_tokens, block)


def beyond_ceiling(target: float, answer_tokens: float, block: float) -> str:
    """Why a target of tokens per forward cannot be reached; "" if it can."""
    most = ceiling(answer_tokens, block)
    if target <= SHARE * most:
        return ""
    return (
        f"{target:g} tokens per forward are out of reach: answers of {answer_tokens:.1f} tokens in blocks of {block:g} "
        f"allow at most {most:.2f}, one forward per block"
    )


def ceilings(parent: pd.DataFrame, blocks: Iterable[float]) -> pd.DataFrame:
    """One row per decoding block: the most tokens per forward that the measured length of the answers allows. Empty
    without a row of the parent."""
    tokens = tokens_per_answer(parent) if len(parent) else np.nan
    return pd.DataFrame(
        {
            "decoding block": f"{block:g}",
            "tokens per answer": tokens,
            "blocks per answer": blocks_per_answer(tokens, block),
            "highest TPF": ceiling(tokens, block),
        }
        for block in (sorted(set(blocks)) if len(parent) else ())
    )
