"""Packed weights: a model computes the same to rounding, nothing stays behind, and only what gains is packed."""

import warnings

import psutil
import pytest
import torch
from common import EOS_ID, denoiser, tiny
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from dlm.decoding.engine.request import Request
from dlm.decoding.threshold import Threshold
from dlm.model import packed_linears
from dlm.model.packed_linears import PackedLinears

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28]]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def pack_all(monkeypatch):
    """Small weights too."""
    monkeypatch.setattr(packed_linears, "MIN_ELEMENTS", 0)


@pytest.fixture
def products(monkeypatch):
    """The numbers of rows that packed kernels were called with."""
    rows, kernel = [], torch.ops.mkldnn._linear_pointwise

    def counted(x, *args):
        rows.append(x.numel() // x.shape[-1])
        return kernel(x, *args)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    return rows


def num_linears(model) -> int:
    return sum(type(m) is nn.Linear for m in model.modules())


@needs_onednn
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3_text", "mistral"])
@pytest.mark.parametrize(
    ("pattern", "token_shift"), [("block", False), ("block", True), ("bidir", False), ("ar", True)]
)
def test_decoding_gives_the_same_tokens_from_packed_weights(pack_all, products, architecture, pattern, token_shift):
    model = tiny(architecture, torch.float32)
    scorer = denoiser(model, pattern, 4, token_shift)
    request = Request(PROMPTS, 14, EOS_ID)
    plain = Threshold(0.3).generate(scorer, request)
    assert not products
    with PackedLinears(model) as linears:
        made = Threshold(0.3).generate(scorer, request)
    assert [g.tokens for g in made] == [g.tokens for g in plain]
    assert [g.nfe for g in made] == [g.nfe for g in plain]
    assert len(linears.forwards) == num_linears(model)
    assert len(products) % num_linears(model) == 0 and products  # every linear map of every forward, the head's too


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (2, 3, 24), (0, 24), (24,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_map_is_the_plain_one_to_rounding_for_any_rows(pack_all, products, shape, bias, dtype):
    linear = nn.Linear(24, 40, bias).to(dtype)
    x = torch.randn(shape).to(dtype)
    with torch.no_grad(), PackedLinears(linear):
        made = linear(x)
        assert bool(products) == (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    torch.testing.assert_close(made, linear(x).detach())


@needs_onednn
def test_a_columnwise_slice_is_read_as_it_lies(pack_all, products):
    linear, x = nn.Linear(24, 40), torch.randn(5, 48)[:, ::2]
    with torch.no_grad(), PackedLinears(linear):
        made = linear(x)
    assert products == [5]
    torch.testing.assert_close(made, linear(x).detach())


@needs_onednn
def test_rows_of_another_type_are_refused_as_without_packing(pack_all, products):
    linear = nn.Linear(24, 40)
    with torch.no_grad(), PackedLinears(linear), pytest.raises(RuntimeError, match="dtype"):
        linear(torch.randn(5, 24).double())
    assert not products


@needs_onednn
def test_nothing_stays_behind_even_after_an_error(pack_all, products):
    model = tiny("llama", torch.float32)
    before = model(IDS).logits.detach()
    with pytest.raises(KeyError), PackedLinears(model):
        raise KeyError
    assert not any("forward" in vars(m) for m in model.modules())
    assert torch.equal(model(IDS).logits, before) and not products


@needs_onednn
def test_entering_again_makes_no_second_copy(pack_all, monkeypatch):
    copies, kernel = [], torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda w: copies.append(1) or kernel(w))
    model = tiny("llama", torch.float32)
    linears = PackedLinears(model)
    for _ in range(2):
        with linears, torch.no_grad():
            model(IDS)
    assert len(copies) == num_linears(model)


@needs_onednn
def test_gradients_go_through_the_plain_weights(pack_all, products):
    model = tiny("llama", torch.float32)
    model(IDS).logits.sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with PackedLinears(model):
        model(IDS).logits.sum().backward()
    assert not products
    assert all(torch.equal(p.grad, expected[name]) for name, p in model.named_parameters())


@needs_onednn
def test_the_base_weights_under_lora_are_packed_and_the_adapters_count(pack_all, products):
    model = tiny("llama", torch.float32)
    config = LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = inject_adapter_in_model(config, model).eval()
    with torch.no_grad():
        expected = model(IDS).logits
        with PackedLinears(model):
            made = model(IDS).logits
    assert len(products) == num_linears(model)
    torch.testing.assert_close(made, expected)


def test_types_and_devices_without_a_kernel_and_subclasses_stay_as_they_are(pack_all):
    class Noisy(nn.Linear):
        pass

    assert not PackedLinears(tiny("llama")).forwards  # float64
    assert not PackedLinears(tiny("llama", torch.float32).to("meta")).forwards
    assert not PackedLinears(Noisy(8, 8)).forwards
    assert not PackedLinears(nn.Embedding(8, 8)).forwards
    replaced = nn.Linear(8, 8)
    replaced.forward = lambda x: x
    with PackedLinears(replaced):
        pass
    assert replaced(1) == 1


@needs_onednn
def test_a_small_weight_stays_as_it_is():
    small, large = nn.Linear(512, 255), nn.Linear(512, 256)
    assert list(PackedLinears(nn.Sequential(small, large)).forwards) == [large]


@needs_onednn
@pytest.mark.parametrize(("free", "is_packed"), [(2 * 40 * 24 * 4, True), (2 * 40 * 24 * 4 - 1, False)])
def test_copies_take_at_most_half_of_the_free_memory(pack_all, monkeypatch, free, is_packed):
    memory = psutil.virtual_memory()._replace(available=free)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert bool(PackedLinears(nn.Linear(24, 40)).forwards) == is_packed
    assert ["0.0 GB, more than 50% of the 0.0 GB" in str(w.message) for w in said] == [True] * (not is_packed)


def test_without_onednn_nothing_is_packed(pack_all, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not PackedLinears(nn.Linear(24, 40)).forwards
