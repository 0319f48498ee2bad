"""Images as context: the parent in the AR limit, parity of training and decoding, packing, trimming, gradients."""

import pytest
import torch
from conftest import MASK_ID
from visions import FAMILIES, arguments, document, packed, save_llava, seeing

from dlm.attention.block import Block
from dlm.conversion.objective import Objective
from dlm.conversion.prepare import corrupt, lay_out
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.parent import load_parent
from dlm.model.vision import example_document
from dlm.types import generator


def prepared(scorer, batch, t_min=0.3, noised=None):
    batch = scorer.scorable(batch)
    noised = noised or corrupt(scorer, Uniform(count="bernoulli", t_min=t_min), batch, generator(3))
    return lay_out(scorer, batch, noised, Objective(Nelbo()))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_blocks_of_one_token_score_a_picture_and_its_answer_as_the_parent_does(family):
    """The logits of the model's own forward, for several documents with images in a row (I1)."""
    scorer = seeing(family, Block(1), True)
    documents = [document(family, 1, 3, 4, 11), document(family, 2, 5, 2, 9, count=2), document(family, 3, 1, 0, 7)]
    length = sum(len(ids) for ids, *_ in documents)
    documents.append(document(family, 4, 2, 1, length - document(family, 4, 2, 1, 0)[1]))
    batch = packed([documents[:3], documents[3:]])
    ready = prepared(scorer, batch, t_min=0.9)
    got, where = scorer(ready.inputs), ready.scored.index
    for row, start, (ids, _, pictures) in [
        (0, 0, documents[0]),
        (0, len(documents[0][0]), documents[1]),
        (0, len(documents[0][0]) + len(documents[1][0]), documents[2]),
        (1, 0, documents[3]),
    ]:
        expected = scorer.model(**arguments(ids, pictures), use_cache=False).logits[0].double()
        expected[:, MASK_ID] = -torch.inf
        position = where - row * length - start
        here = (position >= 0) & (position < len(ids))
        assert here.any()
        torch.testing.assert_close(got[here].double(), expected[position[here] - 1], rtol=1e-6, atol=1e-6)


def test_a_checkpoint_that_reads_images_is_loaded_with_its_processor(tmp_path):
    """What is saved reads the same images, and has the mask token, too."""
    save_llava(tmp_path / "parent")
    parent = load_parent(str(tmp_path / "parent"), dtype="float32")
    assert parent.processor.tokenizer is parent.tokenizer and parent.span_ids == ()
    parent.model.save_pretrained(tmp_path / "again")
    parent.save(tmp_path / "again")
    again = load_parent(str(tmp_path / "again"))
    assert again.mask_id == parent.mask_id
    one, two = (example_document(p.processor) for p in (parent, again))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert torch.equal(parent.model(**one).logits, again.model(**two).logits)
