"""Degenerate outputs: those that loop, are empty or never end."""

import pytest
import tokenizers
from common import EOS_ID, denoiser
from transformers import PreTrainedTokenizerFast

from dlm.data.example import Example
from dlm.decoding.base import Decoder
from dlm.decoding.engine.canvas import Generation
from dlm.decoding.engine.loop import Loop
from dlm.decoding.fixed import Fixed
from dlm.evaluation.generation import accuracy, loops, run_tasks


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([7] * 16, True),
        ([7] * 15, False),  # too short to tell from an answer
        ([1, 2, 3, *[4, 5] * 8], True),
        ([*[4, 5] * 8, 3], False),  # it has found out of it
        (list(range(20)) * 4, True),  # a long piece, four times
        (list(range(20)) * 3, False),
        ([9, *[1, 2, 3] * 5], False),  # 15 tokens
        ([3, 1, 2, 3, *[1, 2, 3] * 5], True),
        ([], False),
    ],
)
def test_loops_by_hand(tokens, expected):
    assert loops(tokens) is expected


def test_degenerate_outputs_are_shares_beside_the_accuracy(llama):
    outputs = {"abc": [5, 6, EOS_ID], "empty": [EOS_ID], "endless": list(range(2, 20)), "loop": [8] * 20}

    class Given(Loop):
        session = None  # none is begun

        def generate(self, *args):
            return [
                Generation(tokens, len(tokens), 3 * len(tokens), [1] * len(tokens), [1.0] * len(tokens))
                for tokens in outputs.values()
            ]

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(30)}, unk_token="1"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="0")
    examples = [Example("reverse", "reverse:A=", "A")] * 4
    results = run_tasks(denoiser(llama, "block", 4, False), tokenizer, examples, Decoder(Given(), Fixed(1).rule), 20, 4)
    assert results["repetitive"].tolist() == [False, False, False, True]
    assert results["empty"].tolist() == [False, True, False, False]
    assert results["endless"].tolist() == [False, False, True, True]
    found = accuracy(results)
    assert (found["repetitive"], found["empty"], found["endless"]) == (0.25, 0.25, 0.5)
    assert found["tokens_per_row"] == pytest.approx(1 / 3) and found["families"]["reverse"]["endless"] == 0.5
    assert found["tpf"] == 1.0
