"""The limits of the blocks of an answer to a picture: one block is full diffusion, and blocks of one token are a causal
model that is asked with a single mask. (That training scores as decoding does, that a threshold of one is one token a
forward, and that noise does not grow with the block are in test_vision_decoding.py and test_vision_traps.py.)"""

import pytest
import torch
from common import MASK_ID, everyday
from visions import FAMILIES, arguments, document, packed, seeing

from dlm.attention.bidir import Bidir
from dlm.attention.block import Block
from dlm.types import Noised

EXACT = {"rtol": 1e-6, "atol": 1e-6}
every_family = pytest.mark.parametrize("family", everyday(FAMILIES))


def noised(batch):
    masked = batch.maskable & (batch.position % 3 != 0)
    return Noised(torch.where(masked, MASK_ID, batch.x0), masked, masked.float())


@every_family
@torch.no_grad()
def test_a_block_as_long_as_the_row_is_full_diffusion_over_picture_and_answer(family):
    """What is read of the document, image and all, is what full attention reads (I2)."""
    batch = packed([[document(family, 5, 3, 5, 20)]])
    length = batch.x0.shape[1]
    block, whole = (seeing(family, pattern, False) for pattern in (Block(length), Bidir(length, 0)))
    logits = [scorer(scorer.inputs(batch, noised(batch))[0]) for scorer in (block, whole)]
    torch.testing.assert_close(*logits, **EXACT)


@every_family
@torch.no_grad()
def test_blocks_of_one_token_ask_the_causal_parent_with_a_single_mask(family):
    """Without the token shift: not the parent's own prediction, which stands one position earlier."""
    scorer, (ids, prompt, pictures) = seeing(family, Block(1), False), document(family, 5, 3, 5, 6)
    batch = packed([[(ids, prompt, pictures)]])
    masked = batch.maskable
    inputs, scored = scorer.inputs(batch, Noised(torch.where(masked, MASK_ID, batch.x0), masked, masked.float()))
    got = scorer(inputs)
    for logits, position in zip(got, scored.index.tolist(), strict=True):
        asked = torch.cat([ids[:position], torch.tensor([MASK_ID])])
        expected = scorer.model(**arguments(asked, pictures), use_cache=False).logits[0, -1].double()
        expected[MASK_ID] = -torch.inf
        torch.testing.assert_close(logits.double(), expected, **EXACT)
