"""What a run checks of itself before its first step, and that each check can fail."""

import pytest
import torch
from conftest import PATTERNS, config, denoiser, random_batch
from test_train import SMALL, runs_dir, short_prose  # noqa: F401

from dlm.attention.block import Block
from dlm.conversion.module import Conversion
from dlm.model.denoiser import Denoiser
from dlm.model.parent import Parent
from dlm.runs.run import Run
from dlm.train import train
from dlm.trainer.selfcheck import Probe, check_ar_limit, check_leak, check_parity, is_ar_limit


class Leaks(Block):
    """The noisy stream sees its own clean block, too."""

    def allowed(self, q, k):
        return super().allowed(q, k) | (~q.clean & k.clean & (self.block(q) == self.block(k)))


class LooksAhead(Block):
    """Blocks see the clean stream of the next block."""

    def allowed(self, q, k):
        return super().allowed(q, k) | (k.clean & (self.block(k) == self.block(q) + 1))


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("name", PATTERNS)
@torch.no_grad()
def test_every_pattern_of_ours_passes_on_every_architecture(model, name, size, token_shift):
    if name == "ar" and (not token_shift or size != 1):
        return
    scorer = denoiser(model, name, size, token_shift)
    probe = Probe.of(scorer, random_batch(1, 16).x0[0])
    check_leak(scorer, probe, half=False)
    check_parity(scorer, probe, half=False)
    if is_ar_limit(scorer):
        check_ar_limit(scorer, probe, half=False)


@pytest.mark.parametrize("leaking", [Leaks, LooksAhead])
@torch.no_grad()
def test_a_pattern_that_leaks_is_refused(leaking, llama):
    scorer = denoiser(llama, "block", 4, False)
    scorer.pattern = leaking(4)
    with pytest.raises(ValueError, match="self-check: llama under the attention pattern Leaks|LooksAhead .* to copy"):
        check_leak(scorer, Probe.of(scorer, random_batch(1, 16).x0[0]), half=False)


@torch.no_grad()
def test_a_decoder_that_scores_otherwise_than_training_is_refused(llama, monkeypatch):
    scorer = denoiser(llama, "block", 4, False)
    probe = Probe.of(scorer, random_batch(1, 16).x0[0])
    monkeypatch.setattr("dlm.trainer.selfcheck.forward", lambda d, canvas: (torch.randn(2, 61), None))
    with pytest.raises(ValueError, match="decoding scores a block otherwise than training, by"):
        check_parity(scorer, probe, half=False)


@torch.no_grad()
def test_a_text_of_one_token_repeated_is_a_probe_all_the_same(llama):
    scorer = denoiser(llama, "block", 4, False)
    probe = Probe.of(scorer, torch.full((16,), 2))
    other = probe.changed(slice(probe.begin, 16), scorer.mask_id)
    assert (other.x0 != probe.x0)[:, probe.begin :].all() and torch.equal(other.x0[:, :6], probe.x0[:, :6])


@pytest.fixture
def small(runs_dir):  # noqa: F811
    return lambda *overrides: config(*SMALL, f"runs_dir={runs_dir}", *overrides)


def test_a_run_checks_itself_before_its_first_step(small, monkeypatch):
    asked = []
    score = Denoiser.forward
    monkeypatch.setattr(Denoiser, "forward", lambda self, inputs: asked.append(self.pattern) or score(self, inputs))
    record = train(small())["record"]
    assert len(asked) == 3  # two for the leak, one for parity
    assert 0 < record["selfcheck_seconds"] < 5


def test_a_violation_ends_the_run_before_any_step(small, runs_dir, monkeypatch):  # noqa: F811
    allowed = Block.allowed
    monkeypatch.setattr(Conversion, "training_step", lambda *_: pytest.fail("compute was spent"))
    monkeypatch.setattr(Block, "allowed", lambda self, q, k: allowed(self, q, k) | k.clean)
    with pytest.raises(ValueError, match="self-check: qwen3 .* Nothing was trained"):
        train(small())


def test_a_damaged_reference_of_drift_is_named_before_training(small, runs_dir):  # noqa: F811
    train(small())
    (path,) = (runs_dir / ".parents").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"the parent's weights in .* are not those of the parent .* Delete it"):
        train(small("seed=1"))


def test_a_run_does_not_go_on_with_another_parent(small, monkeypatch):
    cfg = small("runtime.checkpoint_every=1")
    step = Conversion.training_step

    def breaks(self, batch, batch_idx):
        if self.micro_batches == 3:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "training_step", breaks)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    monkeypatch.setattr(Parent, "fingerprint", lambda self: "0" * 16)
    with pytest.raises(ValueError, match=r"began with a parent of fingerprint .* has 0000000000000000 now"):
        train(cfg)
    assert Run.create(cfg, {}).checkpoint.exists()
