"""On-policy states: what a model makes itself is what training shows it."""

import pytest
import torch
from common import EOS_ID, MASK_ID, config, denoiser, options, random_batch, tiny
from torch._dynamo.testing import CompileCounterWithBackend

from dlm.config.build import make
from dlm.conversion.prepare import corrupt
from dlm.decoding.engine.request import Request
from dlm.decoding.threshold import Threshold
from dlm.masking.uniform import Uniform
from dlm.rollout.prediction import Prediction
from dlm.rollout.trajectory import Trajectory
from dlm.types import Noised, generator


def trajectory(threshold=0.9) -> Trajectory:
    rollout = Trajectory(Threshold(threshold), batch_size=8)
    rollout.eos_id, rollout.ends = EOS_ID, [EOS_ID]
    return rollout


def drawn(scorer, batch, masking=None, seed=0) -> Noised:
    return corrupt(scorer, masking or Uniform(), batch, generator(seed))


@pytest.mark.parametrize("pattern", ["block", "bidir", "block_noisy"])
def test_masks_become_the_models_own_argmax_and_visible_tokens_stay(llama, pattern):
    """Against a plain forward, block by block."""
    scorer, batch = denoiser(llama, pattern, 16, False), random_batch(2, 16)
    noised = drawn(scorer, batch, Uniform(score="all"))
    _, made = Prediction(1.0)(scorer, batch, noised, generator(0))
    everything = torch.ones(2, 1, 16, 16, dtype=torch.bool)  # one block: all of it is seen
    expected = llama(noised.xt, attention_mask=everything).logits[..., :MASK_ID].argmax(-1)
    assert torch.equal(made.xt, torch.where(noised.masked, expected, noised.xt))
    assert torch.equal(made.scored, batch.maskable) and torch.equal(made.masked, noised.masked)
    assert (made.xt != MASK_ID).all() and not made.xt.requires_grad


def test_a_batch_is_filled_with_its_probability(llama):
    scorer, batch = denoiser(llama, "block", 4, False), random_batch(1, 8)
    noised = drawn(scorer, batch)

    def filled(probability, seed):
        return not (Prediction(probability)(scorer, batch, noised, generator(seed))[1].xt == MASK_ID).any()

    assert not any(filled(0.0, seed) for seed in range(5)) and all(filled(1.0, seed) for seed in range(5))
    assert 20 < sum(filled(0.5, seed) for seed in range(64)) < 44
    with pytest.raises(ValueError, match=r"probability 1.5"):
        Prediction(1.5)


def test_a_model_that_predicts_everything_right_is_shown_clean_text(llama, monkeypatch):
    scorer, batch = denoiser(llama, "block", 4, False), random_batch(1, 8)
    noised = drawn(scorer, batch)
    monkeypatch.setattr(scorer, "predictions", lambda inputs: batch.x0[noised.masked])
    assert torch.equal(Prediction(1.0)(scorer, batch, noised, generator(0))[1].xt, batch.x0)


@pytest.mark.parametrize("threshold", [1.1, 0.1])
def test_a_trajectory_is_what_the_decoder_generates_after_the_prompt(llama, threshold):
    scorer, batch = denoiser(llama, "block", 4, False), random_batch(2, 16, documents=[10, 6])
    batch.maskable[:, :3] = False  # the prompt of the first document; the second has none
    made, noised = trajectory(threshold)(scorer, batch, drawn(scorer, batch), generator(0))
    for row in range(2):
        for begin, first, end in ((0, 3, 10), (10, 13, 16)):  # the second is continued from its middle
            prompt = batch.x0[row, begin:first].tolist()
            own = Threshold(threshold).generate(scorer, Request([prompt], end - first, EOS_ID))[0]
            expected = own.tokens + [EOS_ID] * (end - first - len(own.tokens))
            assert made.x0[row, first:end].tolist() == expected
            assert torch.equal(made.x0[row, begin:first], batch.x0[row, begin:first])
            steps = torch.tensor(own.step + own.step[-1:] * (end - first - len(own.tokens)))
            for block in range(4):
                inside = (torch.arange(first, end) - begin) // 4 == block
                if inside.any():
                    hidden = noised.masked[row, first:end][inside]
                    assert hidden.any()  # something is left to predict
                    shown = steps[inside][~hidden]
                    assert not len(shown) or shown.max() < steps[inside][hidden].min()
    assert torch.equal(noised.xt, torch.where(noised.masked, MASK_ID, made.x0))
    assert not (noised.masked & ~made.maskable).any() and not noised.masked[:, :3].any()


@pytest.mark.trains
def test_decoding_in_a_trajectory_leaves_the_versions_of_compiled_layers_to_training():
    """It has other shapes in every forward, and a function has eight versions."""
    torch._dynamo.reset()
    scorer, batch = denoiser(tiny("llama"), "block", 4, False), random_batch(2, 24)
    counter = CompileCounterWithBackend("eager")
    scorer.compile(few_shapes=False, backend=counter)
    trajectory()(scorer, batch, drawn(scorer, batch), generator(0))
    assert counter.frame_count == 0
    inputs, _ = scorer.inputs(batch, drawn(scorer, batch))
    scorer.read(inputs)
    assert counter.frame_count > 0


@pytest.mark.parametrize("name", options("rollout"))
def test_a_rollout_leaves_mode_and_gradients_alone_and_the_same_seed_gives_the_same(llama, name):
    rollout, scorer = make(config(f"rollout={name}").rollout), denoiser(llama, "block", 4, False)
    rollout.eos_id, rollout.ends = EOS_ID, [EOS_ID]
    batch = random_batch(2, 16)
    noised = drawn(scorer, batch)
    scorer.train()
    first, second = (rollout(scorer, batch, noised, generator(3)) for _ in range(2))
    assert scorer.training and scorer.model.training
    scorer.eval()
    assert torch.equal(first[0].x0, second[0].x0) and torch.equal(first[1].xt, second[1].xt)
    assert all(p.grad is None for p in llama.parameters())
