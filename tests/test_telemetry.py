"""Where the loss of a run is, by noise level and by position, and the picture of its drift."""

import numpy as np
import pandas as pd
import pytest
import torch
from common import options, pattern_of, random_batch, tiny

from dlm.conversion.prepare import prepare
from dlm.masking.uniform import Uniform
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.trainer.drift_picture import count, heat_map
from dlm.trainer.loss_profile import BINS, LossProfile
from dlm.types import generator


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("name", options("attention"))
def test_the_loss_is_put_where_the_token_is_in_its_block_and_at_the_level_of_its_noise(name, shift):
    size = 4
    pattern = pattern_of(name, size)
    if pattern.requires_token_shift and not shift:
        pytest.skip("this pattern needs the shift")
    model = tiny("llama")
    denoiser = Denoiser(model, pattern, 3, shift, layer_types(model))
    batch = denoiser.scorable(random_batch(3, 16))
    prepared = prepare(denoiser, Uniform(), batch, generator(1))
    nll = torch.arange(1.0, len(prepared.scored.target) + 1)
    profile = LossProfile(shift, torch.device("cpu"))
    profile.add([prepared], nll)
    found = profile.take(lambda sums: sums)
    position = batch.position.flatten()[prepared.scored.index] % pattern.block_size
    for place in range(pattern.block_size):
        if (position == place).any():
            assert found[f"loss_by_position/{place + 1}"] == pytest.approx(nll[position == place].mean().item())
    level = (BINS / prepared.scored.weight - 1e-3).ceil()
    assert sum(f"loss_by_level/{n}" in found for n in range(1, BINS + 1)) == len(level.unique())
    assert found["train/masked_share"] == pytest.approx(len(nll) / prepared.num_maskable)
    assert profile.take(lambda sums: sums) == {}  # it begins again


def test_a_loss_at_a_noise_level_of_an_eighth_is_in_the_first_bin_and_that_of_a_shown_token_in_none():
    class Scored:
        target = torch.zeros(4)
        weight = torch.tensor([8.0, 1.0, 4.0, 0.0])

    class Piece:
        scored, num_maskable = Scored, 8

        class inputs:
            scored = torch.arange(4)

            class pattern:
                block_size = 32

            class rows:
                position = torch.tensor([[0, 3, 4, 31]])

    profile = LossProfile(False, torch.device("cpu"))
    profile.add([Piece], torch.tensor([1.0, 2.0, 3.0, 100.0]))
    found = profile.take(lambda sums: sums)
    assert found == {
        "loss_by_level/1": 1.0,
        "loss_by_level/2": 3.0,
        "loss_by_level/8": 2.0,
        "loss_by_position/1": 1.5,
        "loss_by_position/2": 3.0,
        "train/masked_share": 3 / 8,
    }


def test_the_heat_map_has_a_cell_for_every_layer_kind_and_measurement():
    kinds, times = ("attention", "ffn"), (512, 1_500_000)
    rows = [
        {"tokens": t, "layer": layer, "kind": kind, "relative": 0.1 * layer + 0.05 * i}
        for i, t in enumerate(times)
        for layer in range(3)
        for kind in kinds
    ]
    rows += [{"tokens": t, "layer": -1, "kind": "embedding", "relative": 0.2} for t in times]
    picture = heat_map(pd.DataFrame(rows))
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    colours = {tuple(pixel) for pixel in picture[:, 100:600:25].reshape(-1, 3).tolist()}
    assert len(colours) >= 6  # 0, 0.05, 0.1, 0.15, 0.2, 0.25
    assert [count(n) for n in (950, 12_345, 1_500_000, 5e10)] == ["950", "12.3k", "1.5M", "50G"]
