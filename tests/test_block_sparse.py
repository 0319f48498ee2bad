"""Block-sparse attention: outputs and gradients of dense SDPA, from a fraction of its pairs."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from common import MASK_ID, SHAPE, config, denoiser, options, pattern_of, random_batch, rows_of, tiny
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from dlm.attention import block_sparse, masks
from dlm.attention.masks import BandMask, band_mask, block_mask, dense_mask
from dlm.config.build import make
from dlm.conversion.prepare import prepare
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.layers import layer_types
from dlm.model.parent import load_parent, new_parent
from dlm.model.probe import check_convertible
from dlm.types import Batch, Noised, generator

TINY = "dlm/assets/tiny"


LENGTH = 50  # no multiple of the chunk of these tests


MODULE = SimpleNamespace(num_key_value_groups=3)


def layouts() -> dict[str, Batch]:
    """Batches of two rows; those of the last one differ, and end in padding."""
    one, other = random_batch(1, LENGTH, [20, 30]), random_batch(1, LENGTH, [33, 17])
    names = ("x0", "maskable", "document", "position")
    ragged = Batch(*(torch.cat([getattr(b, n) for b in (one, other)]) for n in names))
    ragged.document[0, -9:], ragged.document[1, -5:] = -1, -1
    ragged.maskable[ragged.document == -1] = False
    return {"one document": random_batch(2, LENGTH), "packed": random_batch(2, LENGTH, [13, 37]), "ragged": ragged}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(masks, "CHUNK", 16)


@pytest.fixture
def sparse_llama(llama):
    return block_sparse.set_implementation(copy.deepcopy(llama), block_sparse.NAME)


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("name", options("attention"))
def test_a_model_has_the_logits_and_all_gradients_of_dense_sdpa(model, name, layout, small_chunks):
    """Bands of rows change neither logits nor gradients, for any pattern (I6)."""
    found = []
    for implementation in ("sdpa", block_sparse.NAME):
        scorer = denoiser(copy.deepcopy(model), name, 4, True)
        scorer.model.set_attn_implementation(implementation)
        batch = scorer.scorable(layouts()[layout])
        noised = Uniform()(batch, scorer.pattern.units(batch), MASK_ID, generator(1))
        inputs, scored = scorer.inputs(batch, noised)
        logits = scorer(inputs)
        Nelbo()(logits, scored, 100).loss.backward()
        found.append([logits.detach(), *(p.grad for p in scorer.parameters() if p.grad is not None)])
    assert isinstance(next(iter(masks_of(scorer, inputs))), BandMask)
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-5 if dense.dtype == torch.float32 else 1e-10, atol=1e-10)


def masks_of(scorer, inputs):
    """The masks of all layer types."""
    made = scorer.masks(inputs.rows, inputs.rows)
    return made.values() if isinstance(made, dict) else [made]


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("name", options("attention"))
def test_attention_of_three_queries_a_key_is_dense_sdpa(name, window, layout, small_chunks):
    pattern = pattern_of(name, 4)
    rows = rows_of(pattern, layouts()[layout])
    size = rows.position.shape[1]
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, size, 8, dtype=torch.float64, requires_grad=True) for h in (6, 2, 2))
    mask = band_mask(pattern, rows, window)
    ours, _ = block_sparse.block_sparse_attention(MODULE, q, k, v, mask, scaling=0.3)
    dense = dense_mask(pattern, rows, rows, window)
    theirs = scaled_dot_product_attention(q, *(x.repeat_interleave(3, 1) for x in (k, v)), dense, scale=0.3)
    torch.testing.assert_close(ours.transpose(1, 2), theirs, rtol=0, atol=1e-10)
    upstream = torch.randn_like(theirs)
    for a, b in zip(
        *(torch.autograd.grad(o, (q, k, v), upstream) for o in (ours.transpose(1, 2), theirs)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("width", [8, 6])
def test_attention_with_a_dense_mask_is_dense_sdpa_and_repeats_no_keys(width):
    """As in decoding: few queries, all keys of the cache, three queries a key."""
    torch.manual_seed(0)
    shapes = ((6, 5, 8), (2, 700, 8), (2, 700, width))
    q, k, v = (torch.randn(2, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    mask = torch.rand(2, 1, 5, 700) < 0.5
    theirs = scaled_dot_product_attention(q, *(x.repeat_interleave(3, 1) for x in (k, v)), mask, scale=0.3)
    with Watch() as watch:
        ours, _ = block_sparse.block_sparse_attention(MODULE, q, k, v, mask, scaling=0.3)
    repeated = 2 * 6 * 700 * 8
    assert (watch.largest < repeated) == (width == 8)  # other widths take the kernel that repeats them
    torch.testing.assert_close(ours.transpose(1, 2), theirs, rtol=0, atol=1e-10)
    upstream = torch.randn_like(theirs)
    for a, b in zip(
        *(torch.autograd.grad(o, (q, k, v), upstream) for o in (ours.transpose(1, 2), theirs)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_values_of_another_width_than_the_keys_are_dense_sdpa(small_chunks):
    """Which the kernel that is called directly cannot do."""
    pattern = pattern_of("block", 4)
    rows = rows_of(pattern, layouts()["packed"])
    size = rows.position.shape[1]
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, size, d, dtype=torch.float64, requires_grad=True) for d in (8, 8, 6))
    ours, _ = block_sparse.block_sparse_attention(MODULE, q, k, v, band_mask(pattern, rows))
    theirs = scaled_dot_product_attention(q, k, v, dense_mask(pattern, rows, rows)).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    for a, b in zip(*(torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_queries_and_keys_that_autocast_left_wider_than_the_values_are_dense_sdpa(small_chunks):
    """As normalised ones are, of Qwen3."""
    pattern = pattern_of("block", 4)
    rows = rows_of(pattern, layouts()["packed"])
    size = rows.position.shape[1]
    torch.manual_seed(0)
    q, k = (torch.randn(2, 3, size, 8, requires_grad=True) for _ in range(2))
    v = torch.randn(2, 3, size, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, _ = block_sparse.block_sparse_attention(MODULE, q, k, v, band_mask(pattern, rows))
        theirs = scaled_dot_product_attention(q, k, v, dense_mask(pattern, rows, rows)).transpose(1, 2)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    rounding = 2**-8  # of bfloat16, near 1; the order of summation differs, and gradients are rounded for every band
    torch.testing.assert_close(ours, theirs, rtol=2 * rounding, atol=rounding)
    for a, b in zip(*(torch.autograd.grad(o.float().sum(), (q, k, v)) for o in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=4 * rounding, atol=2 * rounding)


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("name", options("attention"))
def test_bands_are_the_dense_mask_pair_by_pair(name, window, layout, small_chunks):
    """Bands of rows and the ranges of columns that they see hold exactly the pairs of the dense mask (I6)."""
    pattern = pattern_of(name, 4)
    rows = rows_of(pattern, layouts()[layout])
    mask = band_mask(pattern, rows, window)
    whole = torch.zeros(mask.shape, dtype=torch.bool)
    for band in mask.bands:
        columns = torch.cat([torch.arange(whole.shape[-1])[c] for c in band.columns])
        whole[:, :, band.rows, columns] = True if band.visible is None else band.visible
    assert torch.equal(whole, dense_mask(pattern, rows, rows, window))


class Watch(TorchDispatchMode):
    """The pairs of every SDPA and the size of the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.pairs, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.pairs += args[0].shape[2] * args[1].shape[2]
        tensors = out if isinstance(out, (tuple, list)) else [out]
        self.largest = max([self.largest, *(t.numel() for t in tensors if isinstance(t, torch.Tensor))])
        return out


def test_512_tokens_compute_a_third_of_the_pairs_and_make_no_dense_tensor():
    pattern = make(config("attention=block", "block_size=16").attention)
    rows = rows_of(pattern, random_batch(1, 512))
    q, k, v = (torch.randn(1, h, 1024, 16, requires_grad=True) for h in (4, 2, 2))
    with Watch() as watch:
        mask = band_mask(pattern, rows)
        block_sparse.block_sparse_attention(MODULE, q, k, v, mask)[0].sum().backward()
    noisy, clean = (sum(64 * (64 * i + more) for i in range(8)) for more in (64 + 48, 64))
    assert watch.pairs == noisy + clean
    assert 1024**2 / watch.pairs > 3.2
    assert watch.largest < 1024**2


def test_short_rows_are_one_band_and_full_ones_need_no_mask():
    pattern = make(config("attention=block", "block_size=16").attention)
    assert len(band_mask(pattern, rows_of(pattern, random_batch(2, 64))).bands) == 1
    bidir = make(config("attention=bidir").attention)
    bands = band_mask(bidir, rows_of(bidir, random_batch(2, 160))).bands
    assert [band.visible for band in bands] == [None] * 3


def test_masks_are_made_once_per_layout_and_layer_type(monkeypatch):
    made = []
    for name in ("band_mask", "block_mask"):
        make_mask = getattr(masks, name)
        monkeypatch.setattr(masks, name, lambda *a, make_mask=make_mask, name=name: made.append(name) or make_mask(*a))
    scorer = denoiser(tiny("gemma3_text"), "block", 4, False)
    batch, packed = random_batch(2, 16), random_batch(2, 16, [5, 11])
    for implementation, name in ((block_sparse.NAME, "band_mask"), ("flex_attention", "block_mask")):
        scorer.model.config._attn_implementation = implementation
        for same in (batch, batch, batch, packed):
            rows = scorer.inputs(same, Noised(same.x0, same.maskable, same.maskable.float()))[0].rows
            scorer.masks(rows, rows, rows.layout())
        assert made == [name] * 4  # two layer types, two layouts
        made.clear()


def test_masks_of_a_validation_in_inference_mode_are_not_those_of_training(sparse_llama):
    scorer = denoiser(sparse_llama, "block", 4, False)
    prepared = prepare(scorer, Uniform(), random_batch(1, 16), generator(0))
    assert prepared.inputs.layout == prepared.inputs.rows.layout()
    with torch.inference_mode():
        scorer(prepared.inputs)
    scorer(prepared.inputs).logsumexp(-1).sum().backward()


def test_a_model_keeps_its_own_causal_forward_and_passes_the_check_of_parents(model):
    model = block_sparse.set_implementation(copy.deepcopy(model), block_sparse.NAME)
    check_convertible(model, layer_types(model))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_an_attention_that_does_not_know_bands_fails_on_them(llama, implementation):
    model = copy.deepcopy(llama)
    model.set_attn_implementation(implementation)
    rows = rows_of(pattern_of("block", 4), random_batch(1, 8))
    with pytest.raises(TypeError):
        model(input_ids=torch.ones(1, 16, dtype=torch.long), attention_mask=band_mask(pattern_of("block", 4), rows))


@pytest.mark.parametrize("unsupported", ["softcap", "s_aux", "position_bias"])
def test_what_cannot_be_honoured_is_refused(unsupported):
    q = torch.randn(1, 2, 16, 8)
    mask = band_mask(pattern_of("block", 4), rows_of(pattern_of("block", 4), random_batch(1, 8)))
    with pytest.raises(ValueError, match=f"does not support {unsupported}"):
        block_sparse.block_sparse_attention(MODULE, q, q, q, mask, **{unsupported: 1.0})
    with pytest.raises(ValueError, match="does not fit"):
        block_sparse.block_sparse_attention(MODULE, q, torch.cat([q, q], 2), torch.cat([q, q], 2), mask)
    rows = rows_of(pattern_of("block", 4), random_batch(1, 8))
    flex = block_mask(pattern_of("block", 4), rows, rows)
    with pytest.raises(ValueError, match="no attention dropout on CUDA"):
        block_sparse.block_sparse_attention(MODULE, q, q, q, flex, dropout=0.1)


def test_attention_dropout_is_honoured():
    q = torch.randn(1, 2, 16, 8)
    mask = band_mask(pattern_of("block", 4), rows_of(pattern_of("block", 4), random_batch(1, 8)))
    torch.manual_seed(0)
    dropped, _ = block_sparse.block_sparse_attention(MODULE, q, q, q, mask, dropout=0.99)
    assert 0.5 < (dropped == 0).float().mean() < 1


@pytest.mark.parametrize("architecture", ["gemma2", "gpt_oss"])
def test_soft_capping_and_sinks_get_eager_attention_as_with_sdpa(architecture, capsys):
    shape = {k: v for k, v in SHAPE.items() if k not in ("vocab_size", "eos_token_id", "pad_token_id")}
    parent = new_parent({"model_type": architecture, "head_dim": 8} | shape, TINY, 0, check=False)
    assert parent.model.config._attn_implementation == "eager"
    assert "is not to be had for this architecture: eager" in capsys.readouterr().err


def test_a_saved_model_does_not_name_the_implementation(tmp_path):
    parent = load_parent(TINY)
    assert parent.model.config._attn_implementation == block_sparse.NAME
    parent.model.save_pretrained(tmp_path)
    assert block_sparse.NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
