"""Weight drift: exactly 0 for an untouched model, the closed form for a known change."""

import math

import pandas as pd
import pytest
import torch
from common import MASK_ID, tiny

from dlm.evaluation.drift import by_layer, difference, measure, save_reference, summary
from dlm.trainable.lora import Lora


@pytest.fixture
def reference(tmp_path, model):
    path = tmp_path / "parent.safetensors"
    save_reference(model, path)
    return path


def test_an_untouched_model_has_drift_exactly_0(model, reference):
    """The drift of an untouched model is exactly 0 (I11)."""
    drift = measure(model, reference)
    assert (drift[["mean_abs", "relative", "one_minus_cos"]] == 0).all(axis=None)
    assert len(drift) == len(dict(model.named_parameters()))
    assert {"attention", "ffn", "norm", "embedding"} <= set(drift["kind"])


def test_scaling_a_tensor_gives_the_closed_forms(tmp_path):
    """W = 3 W0: mean |2 W0|, relative 2, cosine 1."""
    model = tiny("llama")
    save_reference(model, tmp_path / "p.safetensors")
    target = model.model.layers[1].mlp.up_proj.weight
    before = target.detach().abs().mean().item()
    with torch.no_grad():
        target.mul_(3)
    drift = measure(model, tmp_path / "p.safetensors").set_index("tensor")
    row = drift.loc["model.layers.1.mlp.up_proj.weight"]
    assert row["mean_abs"] == pytest.approx(2 * before)
    assert row["relative"] == pytest.approx(2)
    assert row["one_minus_cos"] == pytest.approx(0, abs=1e-12)
    assert (row["layer"], row["kind"]) == (1, "ffn")
    assert drift.drop(index=row.name)["mean_abs"].eq(0).all()


def test_an_orthogonal_change_of_equal_size():
    """W0 = (1, 0), W = (0, 1): mean |dW| 1, relative sqrt 2, 1 - cos = 1."""
    got = difference(torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double())
    assert got == {"mean_abs": 1.0, "relative": pytest.approx(math.sqrt(2)), "one_minus_cos": pytest.approx(1.0)}


def test_a_tensor_that_began_as_zeros_has_no_relative_drift_and_leaves_that_of_its_kind_alone():
    of_zeros = difference(torch.zeros(2).double(), torch.tensor([0.0, 3.0]).double())
    assert of_zeros["mean_abs"] == 1.5 and math.isnan(of_zeros["relative"]) and math.isnan(of_zeros["one_minus_cos"])
    other = difference(torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double())
    drift = pd.DataFrame([of_zeros, other]).assign(tensor=["a", "b"], layer=0, kind="ffn", numel=2)
    assert by_layer(drift).loc[0, ["mean_abs", "relative"]].tolist() == [1.25, other["relative"]]


def test_aggregates_weigh_tensors_by_their_size():
    drift = pd.DataFrame(
        {"tensor": ["a", "b"], "layer": [0, 0], "kind": ["ffn", "ffn"], "numel": [1, 3]}
        | {m: [1.0, 5.0] for m in ("mean_abs", "relative", "one_minus_cos")}
    )
    assert by_layer(drift)["mean_abs"].tolist() == [4.0]
    assert summary(drift)["ffn/relative"] == 4.0


def test_lora_drift_is_that_of_the_merged_weights(tmp_path):
    model = tiny("llama")
    path = tmp_path / "p.safetensors"
    save_reference(model, path)
    lora = Lora(rank=4, alpha=8)
    model = lora.apply(model, MASK_ID)
    assert summary(measure(model, path))["attention/relative"] == 0
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = measure(model, path)
    merged = measure(lora.merged(model), path)
    assert adapted["relative"].gt(0).sum() == 3 * 7  # 7 linear layers in each of 3 layers
    pd.testing.assert_frame_equal(adapted, merged, rtol=1e-6)


def test_lora_trains_adapters_embeddings_norms_and_head_and_freezes_the_matrices():
    model = Lora(rank=4, alpha=8).apply(tiny("llama"), MASK_ID)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert len(frozen) == 3 * 7 and all(".base_layer." in name for name in frozen)
    assert model.model.embed_tokens.weight.requires_grad and model.lm_head.weight.requires_grad
