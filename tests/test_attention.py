"""Attention patterns: their definition, and that every mask made from it agrees with it."""

import itertools
import subprocess
import sys

import pytest
import torch
from common import PATTERNS, ROOT, WITH_SHIFT, denoiser, pattern_of, random_batch, rows_of
from contracts import nothing_leaks
from torch.nn.attention.flex_attention import create_mask

from dlm.attention.masks import TILE, attention_masks, block_mask, dense_mask


def figure2(name, size, q, k):
    """Figure 2 a-d written out for (is clean, document, position) of a row and a column."""
    (q_clean, q_doc, q_pos), (k_clean, k_doc, k_pos) = q, k
    if q_doc != k_doc:
        return False
    q_block, k_block = q_pos // size, k_pos // size
    return {
        "ar": lambda: k_pos <= q_pos,
        "bidir": lambda: True,
        "block_noisy": lambda: k_block <= q_block,
        "block": lambda: (
            (k_block == q_block if not k_clean else k_block < q_block)
            if not q_clean
            else k_clean and k_block <= q_block
        ),
        "block_token_causal": lambda: (
            (k_block == q_block if not k_clean else k_block < q_block) if not q_clean else k_clean and k_pos <= q_pos
        ),
        "block_causal": lambda: (
            (k_block == q_block and k_pos <= q_pos if not k_clean else k_block < q_block)
            if not q_clean
            else k_clean and k_pos <= q_pos
        ),
    }[name]()


# By hand, so that a mistake in a predicate shows; a new pattern is held to the contracts below without a line here.
WRITTEN_OUT = ["ar", "bidir", "block_noisy", "block", "block_token_causal", "block_causal"]


@pytest.mark.parametrize("name", WRITTEN_OUT)
@pytest.mark.parametrize("documents", [[12], [8, 4], [5, 7]])
def test_dense_mask_is_figure_2_pair_by_pair_and_separates_documents(name, documents):
    pattern = pattern_of(name, 4)
    rows = rows_of(pattern, random_batch(1, 12, documents))
    mask = dense_mask(pattern, rows, rows)[0, 0]
    described = list(zip(*(getattr(rows, n)[0].tolist() for n in ("clean", "document", "position")), strict=True))
    for i, j in itertools.product(range(len(described)), repeat=2):
        assert mask[i, j].item() == figure2(name, 4, described[i], described[j]), (i, j)


@pytest.mark.parametrize("name", PATTERNS)
def test_every_row_sees_a_column(name):
    pattern = pattern_of(name, 4)
    rows = rows_of(pattern, random_batch(2, 16, [7, 9]))
    assert dense_mask(pattern, rows, rows).any(-1).all()


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("length", "documents"), [(192, [192]), (160, [64, 96]), (100, [37, 63])])
def test_block_mask_equals_dense_mask(name, window, length, documents):
    pattern = pattern_of(name, 16)
    rows = rows_of(pattern, random_batch(2, length, documents))
    size = rows.position.shape[1]
    dense = dense_mask(pattern, rows, rows, window)
    sparse = block_mask(pattern, rows, rows, window)
    assert torch.equal(create_mask(sparse.mask_mod, 2, 1, size, size, device="cpu"), dense)
    padding = -size % TILE
    tiles = torch.nn.functional.pad(dense, (0, padding, 0, padding)).unfold(2, TILE, TILE).unfold(3, TILE, TILE)
    assert torch.equal(sparse.to_dense().bool(), tiles.flatten(-2).any(-1))
    full = sparse.full_kv_num_blocks.sum()
    assert full == tiles.flatten(-2).all(-1).sum()


FLEX = """
import sys, torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from dlm.attention import ar, bidir, block, block_noisy
from dlm.attention.masks import block_mask, dense_mask
from dlm.types import Rows
for pattern in (ar.AR(), bidir.Bidir(8), block_noisy.BlockNoisy(8), block.Block(8)):
    position = torch.cat([torch.arange(40), torch.arange(56)]).repeat(2)[None].repeat(2, 1)
    document = torch.cat([torch.zeros(40), torch.ones(56)]).long().repeat(2)[None].repeat(2, 1)
    rows = Rows(torch.arange(192).ge(96)[None].repeat(2, 1), document, position)
    q, k, v = (torch.randn(2, 2, 192, 16) for _ in range(3))
    expected = scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(pattern, rows, rows))
    torch.testing.assert_close(flex_attention(q, k, v, block_mask=block_mask(pattern, rows, rows)), expected)
    print("equal")
"""


@pytest.mark.trains
@pytest.mark.compiles
def test_flex_attention_equals_sdpa():
    # In a process of its own: torch cannot trace a mask_mod through the shape checks of the tests.
    done = subprocess.run([sys.executable, "-c", FLEX], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["equal"] * 4, done.stderr


@pytest.mark.trains
def test_block_mask_of_4096_tokens_touches_1088_of_4096_tiles():
    pattern = pattern_of("block", 16)
    rows = rows_of(pattern, random_batch(1, 4096))
    sparse = block_mask(pattern, rows, rows)
    assert sparse.kv_num_blocks.sum() + sparse.full_kv_num_blocks.sum() == 1088
    assert sparse.kv_num_blocks.sum() == 96


@pytest.mark.parametrize(("name", "token_shift"), WITH_SHIFT)
def test_no_leak_of_a_masked_token_or_of_later_blocks(full_or_sliding, name, token_shift):
    """What scores a masked token depends neither on its clean value nor on any token of a later block (I4)."""
    nothing_leaks(denoiser(full_or_sliding, name, 4, token_shift))


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("window", [3, 6])
def test_a_sliding_window_is_cut_out_of_every_pattern(name, window):
    pattern = pattern_of(name, 4)
    rows = rows_of(pattern, random_batch(1, 12))
    types = {"full_attention": None, "sliding_attention": window}
    masks = attention_masks(pattern, rows, rows, types, "sdpa")
    position = rows.position[0]
    near = (position[:, None] - position).abs() < window
    assert torch.equal(masks["full_attention"], dense_mask(pattern, rows, rows))
    assert torch.equal(masks["sliding_attention"], masks["full_attention"] & near)


def test_sliding_window_stays_in_training_and_is_symmetric():
    pattern = pattern_of("bidir", 4)
    rows = rows_of(pattern, random_batch(1, 12))
    masks = attention_masks(pattern, rows, rows, {"full_attention": None, "sliding_attention": 3}, "sdpa")
    distance = (torch.arange(12)[:, None] - torch.arange(12)).abs()
    assert masks["full_attention"].all()
    assert torch.equal(masks["sliding_attention"][0, 0], distance < 3)
