"""Train the embedded parent's tokenizer: `python -m dlm.data.tokenizer to=FOLDER`.

Byte-level BPE on the prose and the tasks. Every digit, capital, punctuation mark and white space is a token of its own,
so merges happen only inside lower-case words.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dlm.data import prose, tasks

PIECES = r"\p{N}|\p{Lu}| ?[\p{L}&&[^\p{Lu}]]+|[^\s\p{L}\p{N}]|\s"


def texts(num_tasks: int = 20_000) -> Iterator[str]:
    """The training text of the tokenizer: the train split of the prose and of the tasks."""
    yield from prose.chapters("train")
    rng = random.Random(0)
    for _ in range(num_tasks):
        example = tasks.sample(rng.choice(list(tasks.FAMILIES)), "train", rng)
        yield example.prompt + example.answer


def train(vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A tokenizer with `<eos>`, `<pad>` and `<mask>` as ids 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<eos>", "<pad>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", mask_token="<mask>"
    )


if __name__ == "__main__":
    train().save_pretrained(sys.argv[1].removeprefix("to="))
