"""Adapters beside matrices in four bits: what is held, trained, written and begun again."""

import importlib.util

import pytest
import torch
from common import config
from small_runs import SMALL, small

from dlm.config.build import build
from dlm.evaluation.drift import effective_weights
from dlm.model.parent import load_parent
from dlm.runs.run import Run
from dlm.train import train
from dlm.trainable.quantised import dense, is_quantised, packed_bytes

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]
TINY = "pkg://dlm/assets/tiny"
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install 'dlm[qlora]'"
)


def ready():
    """What is built for a training, with its matrices in four bits, and the parent's weights before."""
    experiment = build(config(*SMALL, "trainable=qlora"))
    before = {name: weight.clone() for name, weight in effective_weights(experiment.parent.model)}
    experiment.trainable.ready(experiment.parent.model)
    return experiment, before


def bytes_of(weight):
    """Of a matrix in four bits and all that its values are made from."""
    state = weight.quant_state
    parts = (weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    return sum(part.numel() * part.element_size() for part in parts)


@needs_bitsandbytes
def test_every_adapted_matrix_takes_half_a_byte_an_entry_and_only_adapters_are_trained():
    experiment, before = ready()
    model = experiment.parent.model
    held = {name: p for name, p in model.named_parameters() if is_quantised(p)}
    assert len(held) == 7 * model.config.num_hidden_layers
    assert all(p.numel() * p.element_size() * 2 == dense(p).numel() and not p.requires_grad for p in held.values())
    assert all(bytes_of(p) == packed_bytes(dense(p).numel()) for p in held.values())
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    after = dict(effective_weights(model))
    for name, weight in before.items():
        exact = not name.endswith("_proj.weight")
        assert torch.equal(after[name], weight) == exact
        assert (after[name] - weight).norm() <= (0 if exact else 0.12) * weight.norm()


@needs_bitsandbytes
def test_a_checkpoint_has_the_adapters_and_the_rest_is_made_from_the_parent_again():
    first, _ = ready()
    with torch.no_grad():
        for name, p in first.parent.model.named_parameters():
            if "lora_B" in name:
                p += 0.1
    checkpoint = {"state_dict": first.conversion.state_dict()}
    first.conversion.on_save_checkpoint(checkpoint)
    assert not [key for key in checkpoint["state_dict"] if key.endswith(("_proj.base_layer.weight", "absmax"))]
    again, _ = ready()
    assert first.conversion.strict_loading is again.conversion.strict_loading is False
    again.conversion.load_state_dict(checkpoint["state_dict"], strict=again.conversion.strict_loading)
    expected = dict(effective_weights(first.parent.model))
    assert all(torch.equal(weight, expected[name]) for name, weight in effective_weights(again.parent.model))


@needs_bitsandbytes
def test_a_run_writes_the_dequantised_weights_with_its_adapters_and_keeps_what_its_parent_is(runs_dir, capsys):
    run = Run.load(train(small(runs_dir, "trainable=qlora"))["id"], runs_dir)
    assert "a step needs at most about" in capsys.readouterr().out
    parent, saved = load_parent(TINY, check=False), load_parent(str(run.model_folder), check=False)
    assert run.record["parent"]["fingerprint"] == parent.fingerprint()
    expected = {name: weight.shape for name, weight in parent.model.state_dict().items()}
    assert {name: weight.shape for name, weight in saved.model.state_dict().items()} == expected
    assert 0.02 < run.record["drift"]["ffn/relative"] < 0.2 and run.record["drift"]["embedding/relative"] == 0


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    experiment = build(config(*SMALL, "trainable=qlora"))
    monkeypatch.setattr("dlm.trainable.qlora.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs bitsandbytes: pip install 'dlm\[qlora\]'"):
        experiment.trainable.ready(experiment.parent.model)


@needs_bitsandbytes
def test_weights_in_four_bits_are_not_sharded(runs_dir):
    with pytest.raises(ValueError, match="fsdp2: weights in four bits are not sharded: choose trainable=lora"):
        train(small(runs_dir, "trainable=qlora", "runtime.strategy=fsdp2"))
