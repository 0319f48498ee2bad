"""Trimming: the loss and every gradient of the whole forward, on the fewest rows."""

from dataclasses import fields

import pytest
import torch
from common import MASK_ID, PATTERNS, WITH_SHIFT, denoiser, random_batch
from contracts import LENGTH, gradients, prompts_first, trimmed_is_whole

from dlm.masking.uniform import Uniform
from dlm.model.trim import cells, first_fit, needed, trim
from dlm.types import Noised, generator

# Pairwise: a block size and the documents of a row.
LAYOUTS = [(2, [16, 9, 23]), (4, [LENGTH]), (8, [7, 41]), (16, [16, 9, 23])]


@pytest.mark.parametrize(("size", "documents"), LAYOUTS)
@pytest.mark.parametrize(("name", "token_shift"), WITH_SHIFT)
def test_a_trimmed_forward_has_the_loss_and_all_gradients_of_the_whole(
    full_or_sliding, name, token_shift, size, documents
):
    """What nobody reads is left out, and nothing else changes (I7)."""
    trimmed_is_whole(denoiser(full_or_sliding, name, size, token_shift), documents)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "token_shift"), WITH_SHIFT)
def test_a_trimmed_forward_is_the_whole_on_every_architecture(model, name, token_shift):
    """Leaving out what nobody reads changes neither the loss nor any gradient (I7)."""
    trimmed_is_whole(denoiser(model, name, 4, token_shift), [16, 9, 23])


def test_trimming_leaves_out_rows(llama):
    trimmed, inputs = trimmed_is_whole(denoiser(llama, "block", 4, False), [16, 9, 23])
    assert trimmed.input_ids.numel() < inputs.input_ids.numel()


def test_the_last_clean_block_and_nothing_else_of_a_whole_document_is_left_out(llama):
    scorer = denoiser(llama, "block", 4, False)
    batch = random_batch(1, 16)
    inputs, _ = scorer.inputs(batch, Noised(batch.x0, batch.maskable, batch.maskable.float()))
    assert needed(inputs)[0].tolist() == [True] * 28 + [False] * 4
    assert trim(inputs).input_ids.shape == (1, 2 * 16 - 4)


def test_a_prompt_is_read_once_and_clean_and_what_follows_the_answer_not_at_all(llama):
    """16 tokens in blocks of 4, of which only token 9 is masked: noisy block 2 and the clean blocks before it."""
    scorer = denoiser(llama, "block", 4, False)
    batch = random_batch(1, 16)
    masked = batch.position == 9
    inputs, _ = scorer.inputs(batch, Noised(batch.x0, masked, masked.float()))
    kept = needed(inputs)[0]
    assert kept.nonzero()[:, 0].tolist() == [8, 9, 10, 11, *range(16, 24)]


def test_documents_of_a_batch_share_rows_and_their_masks_keep_them_apart(llama):
    scorer = denoiser(llama, "block", 4, False)
    batch = random_batch(4, 16)
    masked = (batch.position == 5) & torch.tensor([[True], [True], [False], [True]])
    inputs, _ = scorer.inputs(batch, Noised(batch.x0, masked, masked.float()))
    trimmed = trim(inputs)  # a noisy and a clean block of three documents, one document to a row
    assert trimmed.input_ids.shape == (3, 8)
    assert sorted(trimmed.rows.document.unique().tolist()) == [0, 1, 2]


@pytest.mark.parametrize("token_shift", [False, True])
def test_few_shapes_are_a_fixed_number_of_rows_and_at_most_eight_widths(llama, monkeypatch, token_shift):
    """So that kernels are compiled for few shapes, which changes no logits (I7)."""
    monkeypatch.setattr("dlm.model.trim.TILE", 4)
    scorer, shapes = denoiser(llama, "block", 4, token_shift), set()
    for seed in range(40):
        batch = scorer.scorable(random_batch(3, 48, [20, 16, 12] if seed % 2 else None, seed=seed))
        masked = (torch.rand(3, 48, generator=generator(seed)) < (seed % 8) / 8) & batch.maskable
        masked[:, : 6 * (seed % 7)] = False
        inputs, scored = scorer.inputs(batch, Noised(batch.x0, masked, masked.float()))
        trimmed = trim(inputs, few_shapes=True)
        shapes.add(trimmed.input_ids.shape)
        if seed < 8:
            (loss, ours), (expected, plain) = (gradients(scorer, i, scored) for i in (trimmed, inputs))
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)
            assert all(torch.allclose(ours[name], plain[name], rtol=1e-10, atol=1e-12) for name in plain)
    assert {rows for rows, _ in shapes} == {3} and 3 <= len(shapes) <= 8 and max(w for _, w in shapes) == 96


def test_a_batch_without_a_masked_token_still_is_a_forward(llama):
    scorer = denoiser(llama, "block", 4, False)
    batch = random_batch(2, 16)
    nothing = torch.zeros_like(batch.maskable)
    inputs, scored = scorer.inputs(batch, Noised(batch.x0, nothing, nothing.float()))
    loss, _ = gradients(scorer, trim(inputs), scored)
    assert loss == 0


def test_cells_are_the_blocks_of_every_document_and_stream(llama):
    scorer = denoiser(llama, "block", 4, False)
    batch = random_batch(1, 10, [6, 4])
    inputs, _ = scorer.inputs(batch, Noised(batch.x0, batch.maskable, batch.maskable.float()))
    cell, first = cells(scorer.pattern, inputs.rows)
    once = [0] * 4 + [1] * 2 + [2] * 4
    assert cell[0].tolist() == once + [c + 3 for c in once]
    assert first[0].tolist() == [0, 4, 6, 10, 14, 16]


def test_first_fit_by_hand():
    bins, offset, rows = first_fit([3, 5, 2, 4], 8)  # 5 and 3 fill a row, 4 and 2 share the next
    assert (bins.tolist(), offset.tolist(), rows) == ([0, 0, 1, 1], [5, 0, 4, 0], 2)


@pytest.mark.parametrize(
    ("name", "token_shift"), [(name, shift) for name, shift in WITH_SHIFT if PATTERNS[name].noisy_stream]
)
@pytest.mark.parametrize("views", [2, 3])
def test_views_that_share_a_clean_stream_have_the_loss_and_gradients_of_rows_of_their_own(
    full_or_sliding, name, views, token_shift
):
    """Several noisy views of packed documents and prompts cost one clean stream and change nothing (I7)."""
    scorer = denoiser(full_or_sliding, name, 4, token_shift)
    batch = scorer.scorable(prompts_first([16, 9, 23]))
    noised = Uniform(views=views)(batch, scorer.pattern.units(batch), MASK_ID, generator(1))
    inputs, scored = scorer.inputs(batch, noised)
    assert inputs.input_ids.shape[1] == (views + scorer.pattern.clean_stream) * LENGTH
    shared = gradients(scorer, inputs, scored)
    trimmed = gradients(scorer, trim(inputs), scored)
    split = [Noised(*(getattr(noised, f.name).chunk(views, 1)[v] for f in fields(Noised))) for v in range(views)]
    apart = [gradients(scorer, *scorer.inputs(batch, one)) for one in split]
    expected = {name: sum(grads[name] for _, grads in apart) for name in apart[0][1]}
    for loss, grads in (shared, trimmed):
        torch.testing.assert_close(loss, sum(loss for loss, _ in apart), rtol=1e-6, atol=0)
        for name, grad in grads.items():  # logits are float32, and other sums round otherwise
            assert (grad - expected[name]).norm() <= 1e-6 * expected[name].norm()


def test_two_views_of_a_row_are_three_streams_less_the_last_clean_block(llama):
    scorer = denoiser(llama, "block", 4, False)
    batch = random_batch(1, 16)
    noised = Uniform(views=2)(batch, scorer.pattern.units(batch), MASK_ID, generator(0))
    inputs, scored = scorer.inputs(batch, noised)
    read = trim(inputs).input_ids.numel()
    assert len(scored.index) == 16
    assert read <= 3 * 16 - 4  # a block that is all masked in one view is not needed in the other
