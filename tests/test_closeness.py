"""How far logits may lie apart: rounding stays below it in every precision, and what is wrong lies above it."""

import pytest
import torch
from common import one_in, tiny
from convertible import CONVERTIBLE, random_model

from dlm.model import probe
from dlm.model.closeness import distance, tolerance
from dlm.model.layers import layer_types

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_a_distance_by_hand():
    b = torch.tensor([[1.0, 3.0], [1.0, 3.0]])  # its mean is 2, so its spread is 2
    assert distance(b + torch.tensor([[1.0, 0.0], [0.0, 0.0]]), b) == pytest.approx(0.5)
    assert distance(b, b) == distance(torch.zeros(2), torch.zeros(2)) == 0


def test_a_distance_depends_neither_on_the_scale_of_logits_nor_on_the_mask_token():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 7, generator=generator).double()
    assert distance(1e3 * a, 1e3 * b) == pytest.approx(distance(a, b))
    hidden = torch.full((5, 1), -torch.inf, dtype=torch.float64)
    zero = torch.zeros_like(hidden)
    assert distance(torch.cat([a, hidden], 1), torch.cat([b, hidden], 1)) == distance(
        torch.cat([a, zero], 1), torch.cat([b, zero], 1)
    )


@pytest.fixture
def distances(monkeypatch) -> list[float]:
    """All that `check_convertible` measures."""
    seen = []
    monkeypatch.setattr(probe, "distance", lambda a, b: seen.append(distance(a, b)) or seen[-1])
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", one_in(2, CONVERTIBLE))
def test_rounding_in_16_bits_is_less_than_half_of_what_is_allowed(name, dtype, distances):
    model = random_model(name, **CONVERTIBLE[name]).to(dtype)
    probe.check_convertible(model, layer_types(model))
    assert len(distances) == 4 and max(distances) < tolerance(dtype) / 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_ignored_mask_lies_far_above_it_in_every_precision(dtype, distances):
    """The model sees everything wherever it is given a mask."""
    model = tiny("llama", dtype)
    forward = model.model.forward

    def leaking(*args, attention_mask=None, **kwargs):
        everything = attention_mask if attention_mask is None else torch.zeros_like(attention_mask, dtype=dtype)
        return forward(*args, attention_mask=everything, **kwargs)

    model.model.forward = leaking
    with pytest.raises(ValueError, match="an explicit causal mask does not give its own logits"):
        probe.check_convertible(model, layer_types(model))
    assert distances[-1] > 3 * tolerance(dtype)
