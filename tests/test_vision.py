"""Images as context: the parent in the AR limit, parity of training and decoding, packing, trimming, gradients."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from common import MASK_ID
from visions import FAMILIES, arguments, blind, document, packed, save_llava, seeing

from dlm.attention.block import Block
from dlm.attention.masks import band_mask, block_mask, dense_mask
from dlm.conversion.objective import Objective
from dlm.conversion.pieces import lay_out_pieces, loss_of
from dlm.conversion.prepare import corrupt, lay_out
from dlm.conversion.selfcheck import check_row
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.context import record
from dlm.model.parent import load_parent
from dlm.model.vision import example_document
from dlm.types import Batch, Noised, generator

UNREAD = ("post_layernorm", "head.", ".layers.1.", "k_proj.bias")


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


def in_float64(norm, x):
    """What RMSNorm computes, which transformers do in float32 whatever the type of the model."""
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    scale = norm.weight + type(norm).__name__.startswith("Gemma3")
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * scale


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trimmed_forward_has_the_loss_and_all_gradients_of_the_whole(family, monkeypatch):
    """Those of the tower and of the connector, too, which all are reached; in pieces as at once (I7)."""
    scorer = seeing(family, Block(8), True)
    for norm in (m for m in scorer.model.modules() if type(m).__name__.endswith("RMSNorm")):
        monkeypatch.setattr(norm, "forward", partial(in_float64, norm))
    documents = [document(family, 1, 3, 4, 17), document(family, 2, 5, 2, 9, count=2), document(family, 3, 6, 9, 12, 0)]
    length = sum(len(ids) for ids, *_ in documents)
    documents.append(document(family, 4, 2, 3, length - document(family, 4, 2, 3, 0)[1]))
    batch = scorer.scorable(packed([documents[:3], documents[3:], [documents[2], documents[0], documents[1]]]))
    noised = corrupt(scorer, Uniform(), batch, generator(1))
    objective = Objective(Nelbo())
    trimmed = lay_out(scorer, batch, noised, objective)
    inputs, _ = scorer.inputs(batch, noised)
    assert trimmed.inputs.input_ids.numel() < inputs.input_ids.numel()
    whole = replace(trimmed, inputs=inputs.settled())
    pieces = lay_out_pieces(scorer, batch, noised, objective, 2)
    losses, gradients = [], []
    for parts in ([whole], [trimmed], pieces):
        scorer.zero_grad()
        loss = loss_of(objective, scorer, parts)[0].loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad.clone() for name, p in scorer.model.named_parameters() if p.grad is not None})
    exact = {"rtol": 1e-9, "atol": 1e-9}
    if family == "glm4v":  # its tower interpolates positions in float32
        exact = {"rtol": 1e-5, "atol": 1e-6}
    for loss, found in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], **exact)
        assert found.keys() == gradients[0].keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, gradients[0][name], **exact)
    of_decoder = {id(p) for part in (scorer.model.get_decoder(), scorer.model.lm_head) for p in part.parameters()}
    outside = [name for name, p in scorer.model.named_parameters() if id(p) not in of_decoder]
    unreached = [name for name in outside if not gradients[0].get(name, torch.zeros(1)).any()]
    assert len(outside) > 10 and all(any(part in name for part in UNREAD) for name in unreached), unreached


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_the_masks_of_spans_agree(family):
    """Band by band, dense, and as FlexAttention's rows: pair by pair (I6)."""
    scorer = seeing(family, Block(8), True)
    batch = packed([[document(family, 1, 9, 4, 150), document(family, 2, 5, 2, 9, count=2)]])
    ready = prepared(scorer, batch)
    rows, found = ready.inputs.rows, {}
    assert (rows.span is not None) == (family == "gemma3")
    for name, window in scorer.layer_types.items():
        dense = dense_mask(scorer.pattern, rows, rows, window)
        bands = torch.zeros_like(dense)
        for band in band_mask(scorer.pattern, rows, window).bands:
            columns = torch.cat([torch.arange(c.start, c.stop) for c in band.columns])
            bands[:, :, band.rows, columns] = True if band.visible is None else band.visible
        mask = block_mask(scorer.pattern, rows, rows, window)
        q, k = torch.meshgrid(*[torch.arange(rows.position.shape[1])] * 2, indexing="ij")
        assert torch.equal(bands, dense) and torch.equal(mask.mask_mod(0, 0, q, k), dense[0, 0])
        found[name] = int(dense.sum())
    if family == "gemma3":
        without = dense_mask(scorer.pattern, replace(rows, span=None), replace(rows, span=None), None)
        assert int(without.sum()) < found["full_attention"]


def test_a_batch_of_text_is_read_by_a_model_of_images_as_by_any_other():
    """Rows of text in the company of images, and alone: the same logits, and nothing is recorded for the latter."""
    scorer = seeing("qwen3_vl", Block(4), True)
    text, picture = document("qwen3_vl", 1, 12, 14, 20, 0), document("qwen3_vl", 2, 3, 4, 30)
    length = len(text[0])
    picture = document("qwen3_vl", 2, 3, 4, length - document("qwen3_vl", 2, 3, 4, 0)[1])
    alone, mixed = packed([[text]]), packed([[text], [picture]])
    masked = mixed.maskable & (mixed.position % 3 == 0)
    with torch.no_grad():
        results = []
        for batch in (alone, mixed):
            here = masked[: len(batch.x0)]
            noised = Noised(torch.where(here, MASK_ID, batch.x0), here, here.double())
            inputs, _ = scorer.inputs(batch, noised)
            results.append(scorer(inputs)[: int(masked[0].sum())])
    assert alone.images is None
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_a_run_checks_that_decoding_reads_an_image_as_training_does(family, monkeypatch):
    """Before its first step, with a document of its own data; what decoding loses of the image ends it."""
    scorer = seeing(family, Block(4), True)
    row = packed([[document(family, 3, 3, 9, 0, 0), document(family, 2, 6, 3, 13, count=2)]])
    row = Batch(row.x0[0], row.maskable[0], row.document[0], row.position[0], images=row.images)
    assert check_row(scorer, row, half=False, untrained=True)[-1] == "an image is read in decoding as in training"
    monkeypatch.setattr("dlm.decoding.engine.pictures.record", lambda *given: blind(record(*given)))
    with pytest.raises(ValueError, match="decoding scores position .* otherwise than training"):
        check_row(scorer, row, half=False, untrained=True)
