"""FlexAttention, by a compiler that compiles nothing: the outputs of dense SDPA, and few compilations."""

import subprocess
import sys

import pytest
from common import ROOT

FLEX = """
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention
from dlm.attention import ar, bidir, block, block_noisy, block_sparse
from dlm.attention.masks import block_mask, dense_mask
from dlm.types import Rows
def rows(first, length):
    position = torch.cat([torch.arange(first), torch.arange(length - first)]).repeat(2)[None].repeat(2, 1)
    document = (torch.arange(length) >= first).long().repeat(2)[None].repeat(2, 1)
    return Rows(torch.arange(2 * length).ge(length)[None].repeat(2, 1), document, position)
def attend(pattern, first, length):
    r = rows(first, length)
    q, k, v = (torch.randn(2, h, 2 * length, 16) for h in (6, 2, 2))
    ours, _ = block_sparse.block_sparse_attention(None, q, k, v, block_mask(pattern, r, r), scaling=0.3)
    k, v = (x.repeat_interleave(3, 1) for x in (k, v))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, dense_mask(pattern, r, r), scale=0.3)
    torch.testing.assert_close(ours.transpose(1, 2), theirs)
block_sparse.compiled_flex_attention = lambda: flex_attention
for pattern in (ar.AR(), bidir.Bidir(8), block_noisy.BlockNoisy(8), block.Block(8)):
    attend(pattern, 40, 96)
counter = CompileCounter()
compiled = torch.compile(flex_attention, backend=counter)
block_sparse.compiled_flex_attention = lambda: compiled
for first in (40, 40, 50, 7):
    attend(block.Block(8), first, 96)
once = counter.frame_count
for length in (128, 160, 224, 300, 97, 200):
    attend(block.Block(8), 30, length)
print(once, counter.frame_count)
"""


@pytest.mark.slow
def test_flex_attention_is_dense_sdpa_and_compiles_once_for_all_layouts_of_a_shape():
    # In a process of its own: torch cannot trace a mask_mod through the shape checks of the tests.
    done = subprocess.run([sys.executable, "-c", FLEX], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    once, in_all = map(int, done.stdout.split())
    assert once == 1
    assert in_all <= 3  # other shapes: dynamic from then on
