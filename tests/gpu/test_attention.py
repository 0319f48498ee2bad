"""Sparse attention on a device is dense SDPA: outputs, logits and all gradients."""

import importlib
import inspect
import pkgutil

import pytest
import torch
from conftest import HEADS, MASK_ID, denoiser, ragged, random_model
from torch.nn.functional import scaled_dot_product_attention

import dlm.attention
from dlm.attention import block_sparse
from dlm.attention.ar import AR
from dlm.attention.base import AttentionPattern
from dlm.attention.block import Block
from dlm.attention.block_causal import BlockCausal
from dlm.attention.masks import attention_masks, dense_mask
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.types import Rows, generator

LENGTH = 140  # of each stream: together no whole number of tiles
# Of the whole tensor, in the Euclidean norm: float32 sums in another order; in bfloat16 probabilities are rounded to 8
# bits before they are summed, on either side.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def patterns() -> list[type[AttentionPattern]]:
    """Every attention pattern of the package, so that one that is added is tested."""
    modules = [importlib.import_module(f"dlm.attention.{m.name}") for m in pkgutil.iter_modules(dlm.attention.__path__)]
    classes = {c for m in modules for c in vars(m).values() if inspect.isclass(c) and issubclass(c, AttentionPattern)}
    return sorted((c for c in classes if not inspect.isabstract(c)), key=lambda c: c.__name__)


def two_streams(length: int) -> Rows:
    """[noisy ; clean] of ragged rows."""
    batch = ragged(length)
    clean = torch.arange(2 * length).expand(2, -1) >= length
    return Rows(clean, batch.document.repeat(1, 2), batch.position.repeat(1, 2))


def distance(ours, theirs):
    """The relative error of a tensor."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("pattern", [Block(32), BlockCausal(32)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("heads", HEADS)
def test_attention_and_all_its_gradients_are_those_of_dense_sdpa(device, heads, pattern, dtype):
    rows = two_streams(LENGTH).to(device)
    mask = attention_masks(pattern, rows, rows, {"full_attention": None}, block_sparse.NAME)
    number = HEADS[heads][1]["num_attention_heads"], *[HEADS[heads][1]["num_key_value_heads"]] * 2
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, 2 * LENGTH, 128).to(device, dtype).requires_grad_() for h in number)
    ours = block_sparse.block_sparse_attention(torch.nn.Module(), q, k, v, mask)[0].transpose(1, 2)
    dense = dense_mask(pattern, rows, rows)
    theirs = scaled_dot_product_attention(*(t.float() for t in (q, k, v)), dense, enable_gqa=True)
    upstream = torch.randn(theirs.shape).to(device)
    found = (ours, *torch.autograd.grad(ours, (q, k, v), upstream.to(dtype)))
    expected = (theirs, *torch.autograd.grad(theirs, (q, k, v), upstream))
    errors = [distance(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) < TOLERANCE[dtype], dict(zip(("output", "query", "key", "value"), errors, strict=True))


@pytest.mark.parametrize("pattern", patterns(), ids=lambda c: c.__name__)
def test_a_model_with_sliding_layers_has_the_logits_and_all_gradients_of_dense_sdpa(device, pattern):
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 6}
    found = []
    for implementation in ("sdpa", block_sparse.NAME):
        layers = {"layer_types": ["sliding_attention", "full_attention"]}
        model = random_model("gemma3_text", implementation, **shape, **layers).to(device)
        model.set_attn_implementation(implementation)
        scorer = denoiser(model, pattern(1 if pattern is AR else 4), sliding_attention=6)
        batch = scorer.scorable(ragged(50))
        noised = Uniform()(batch, scorer.pattern.units(batch), MASK_ID, generator(1))
        inputs, scored = (part.to(device) for part in scorer.inputs(batch, noised))
        logits = scorer(inputs)
        Nelbo()(logits, scored, 100).loss.backward()
        gradients = {n: p.grad for n, p in scorer.named_parameters() if p.grad is not None}
        found.append({"logits": logits.detach().nan_to_num(neginf=0)} | gradients)
    errors = {name: distance(found[1][name], found[0][name]) for name in found[0]}
    assert max(errors.values()) < 1e-4, errors
