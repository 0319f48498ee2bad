"""The text of single tokens, as it may be shown."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def printable(text: str) -> str:
    """Replace control characters: the output of a model may hold escape codes for the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of a token within a longer text; at the beginning, some tokenizers drop its space."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    return printable(tokenizer.decode([*anchor, token]).removeprefix(tokenizer.decode(anchor)))
