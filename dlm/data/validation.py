"""The rows of validation, which are the same tokens for every attention pattern, block size and seed."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from dlm.data.packing import ATTEMPTS, Document, Source, Tail, pack
from dlm.types import Batch

SEED = 1_000_003
# Records name the version of their validation. Without one they hold, under the same names, the loss of rows that each
# pattern filled in its own way, with noise that depends on the run's seed.
VERSION = 2


class ValidationRows(Dataset):
    """`per_source` rows of `length` tokens from each source. A row holds one document: an answer with its prompt, or a
    window of prose, which fills the row where the text is long enough.

    What is scored are the document's own tokens but its first, which the token shift cannot score. The EOS that the
    pattern's `tail` puts behind them are read and hidden as in decoding, and never scored.
    """

    def __init__(
        self,
        sources: dict[str, Source],
        per_source: int,
        length: int,
        tokenizer: PreTrainedTokenizerBase,
        pad_id: int,
        tail: Tail,
    ):
        self.rows: list[Batch] = []
        self.kinds: list[str] = []
        self.num_bytes: list[int] = []  # of the text of the scored tokens, without EOS
        for name, source in sources.items():
            for index in range(per_source):
                document = draw(source, random.Random(f"{SEED}-{name}-{index}"), length)
                scored = replace(document, maskable=[False, *document.maskable[1:]])
                extra = tail(len(scored.ids), scored.given, random.Random(f"{SEED}-{name}-{index}-tail"))
                whole = scored.ended(tokenizer.eos_token_id, min(extra, length - len(scored.ids)))
                self.rows.append(pack([whole], length, pad_id))
                self.kinds.append(document.kind)
                self.num_bytes.append(size_of_text(scored, tokenizer))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.rows[index]

    def metrics(self, nats: Float[Tensor, " R"]) -> dict[str, float]:
        """The bound in nats per token (`nelbo`) and in `bits_per_byte` of text, over all rows and, as `nelbo_answers`
        and so on, over those of each kind. `nats` are the sums over each row."""
        found = {}
        for kind in ("", *sorted(set(self.kinds))):
            chosen = [n for n, other in enumerate(self.kinds) if kind in ("", other)]
            total, name = nats[chosen].sum().item(), f"_{kind}" * bool(kind)
            found[f"nelbo{name}"] = total / sum(int(self.rows[n].targets.sum()) for n in chosen)
            found[f"bits_per_byte{name}"] = total / max(sum(self.num_bytes[n] for n in chosen), 1) / math.log(2)
        return found


def draw(source: Source, rng: random.Random, length: int) -> Document:
    """A document of at most `length` tokens; of a text that is cut anywhere, one that fills the row if it can."""
    document = None
    for _ in range(ATTEMPTS):
        document = source.draw(rng, length) or document
        if document and (document.kind == "answers" or len(document.ids) == length):
            return document
    if document is None:
        raise ValueError(f"no document fits a row of {length} tokens: raise data.length or shorten the documents")
    return document


def size_of_text(document: Document, tokenizer: PreTrainedTokenizerBase) -> int:
    """The bytes of the text of the maskable tokens."""
    ids = [token for token, maskable in zip(document.ids, document.maskable, strict=True) if maskable]
    return len(tokenizer.decode(ids, skip_special_tokens=True).encode())
