"""What a run checks of itself before its first step, and that each check can fail."""

import pytest
import torch
from common import MASK_ID, WITH_SHIFT, config, denoiser, random_batch
from faulty_patterns import LooksAhead, SeesItself, SeesItselfFromBlock2, SinkOfAnyBlock
from small_runs import SMALL, train_and_interrupt

from dlm.attention.block import Block
from dlm.conversion.module import Conversion
from dlm.conversion.selfcheck import Probe, check, check_leak, check_parity, is_ar_limit, probed_blocks
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.model.parent import Parent
from dlm.runs.run import Run
from dlm.train import train

pytestmark = pytest.mark.usefixtures("short_prose")


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize(("name", "token_shift"), WITH_SHIFT)
@torch.no_grad()
def test_every_pattern_passes_in_the_first_the_second_and_the_last_block(full_or_sliding, name, token_shift, size):
    """By glob over the options: no leak (I4), parity (I3), the AR limit (I1)."""
    scorer = denoiser(full_or_sliding, name, size, token_shift)
    passed = check(scorer, random_batch(1, 16).x0[0], half=False, untrained=True)
    assert len(passed) == 2 + is_ar_limit(scorer)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "token_shift"), WITH_SHIFT)
@torch.no_grad()
def test_every_pattern_passes_on_every_architecture(model, name, token_shift):
    check(denoiser(model, name, 4, token_shift), random_batch(1, 16).x0[0], half=False, untrained=True)


@pytest.mark.parametrize(
    ("size", "token_shift", "length", "blocks"),
    [
        (4, False, 16, [0, 1, 3]),
        (4, False, 8, [0, 1]),
        (16, True, 16, [0]),
        (1, False, 16, [0, 1, 15]),
        (1, True, 16, [1, 15]),  # position 0 is not scored
        (4, True, 4096, [0, 1, 255]),
        (2048, True, 4096, [0]),
    ],
)
def test_which_blocks_are_probed(llama, size, token_shift, length, blocks):
    assert probed_blocks(denoiser(llama, "block", size, token_shift), length) == blocks


def leak_found_in(scorer, length=32) -> list[int]:
    """The blocks in which the check of a leak fails."""
    found = []
    for block in range(length // scorer.pattern.block_size):
        try:
            check_leak(scorer, Probe.of(scorer, random_batch(1, length).x0[0], block), half=False)
        except ValueError:
            found.append(block)
    return found


@pytest.mark.parametrize(
    ("fault", "in_blocks"),
    [
        (SeesItself, [0, 1, 2, 3]),
        (LooksAhead, [0, 1, 2, 3]),  # its own block, too: by the clean block before, which sees it
        (SinkOfAnyBlock, [0]),
        (SeesItselfFromBlock2, [2, 3]),
    ],
)
@torch.no_grad()
def test_a_pattern_that_leaks_is_refused_and_blamed(fault, in_blocks, llama, unchecked):
    scorer = Denoiser(llama, fault(8), MASK_ID, False, layer_types(llama))
    assert leak_found_in(scorer) == in_blocks
    assert set(in_blocks) & set(probed_blocks(scorer, 32))
    said = rf"self-check: llama under the attention pattern {fault.__name__} .* to copy.* mend {fault.__name__}.allowed"
    with pytest.raises(ValueError, match=said):
        check(scorer, random_batch(1, 32).x0[0], half=False, untrained=True)


@torch.no_grad()
def test_a_parent_that_does_not_obey_its_mask_is_blamed_instead_of_the_pattern(llama, monkeypatch):
    scorer = denoiser(llama, "block", 4, False)
    seen = Denoiser.masks
    everything = lambda *args: torch.ones_like(seen(*args))  # noqa: E731
    monkeypatch.setattr(Denoiser, "masks", everything)
    with pytest.raises(ValueError, match="to copy.* the parent's forward does not obey its attention mask"):
        check(scorer, random_batch(1, 16).x0[0], half=False, untrained=True)


@torch.no_grad()
def test_a_decoder_that_scores_otherwise_than_training_is_refused(llama, monkeypatch):
    scorer = denoiser(llama, "block", 4, False)
    probe = Probe.of(scorer, random_batch(1, 16).x0[0], 1, partly=True)
    monkeypatch.setattr("dlm.conversion.selfcheck.forward", lambda d, canvas: torch.randn(2, 61))
    with pytest.raises(ValueError, match="decoding scores position 6 and .* otherwise than training, by"):
        check_parity(scorer, probe, half=False)


@torch.no_grad()
def test_a_text_of_one_token_repeated_is_a_probe_all_the_same(llama):
    scorer = denoiser(llama, "block", 4, False)
    probe = Probe.of(scorer, torch.full((16,), 2), 1)
    other = probe.changed(slice(probe.begin, 12), scorer.mask_id)
    assert (other.x0 != probe.x0)[:, probe.begin :].all() and torch.equal(other.x0[:, :4], probe.x0[:, :4])


@pytest.fixture
def small(runs_dir):
    return lambda *overrides: config(*SMALL, f"runs_dir={runs_dir}", *overrides)


@pytest.mark.trains
def test_a_run_checks_itself_before_its_first_step_and_says_what_passed(small, monkeypatch, capsys):
    asked = []
    score = Denoiser.forward
    monkeypatch.setattr(Denoiser, "forward", lambda self, inputs: asked.append(self.pattern) or score(self, inputs))
    record = train(small())["record"]
    assert len(asked) == 3 * 3  # in three blocks: two for the leak, one for parity
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("self-check: ")]
    assert said == ("self-check: no leak in blocks 0, 1, 7; decoding scores as training; the weights are the parent's")
    assert 0 < record["selfcheck_seconds"] < min(5, record["train_seconds"])


def test_a_violation_ends_the_run_before_any_step(small, unchecked, monkeypatch):
    allowed = Block.allowed
    monkeypatch.setattr(Conversion, "training_step", lambda *_: pytest.fail("compute was spent"))
    monkeypatch.setattr(Block, "allowed", lambda self, q, k: allowed(self, q, k) | k.clean)
    with pytest.raises(ValueError, match="self-check: qwen3 .* Nothing was trained"):
        train(small())


@pytest.mark.trains
def test_a_damaged_reference_of_drift_is_named_before_training(small, runs_dir):
    train(small())
    (path,) = (runs_dir / ".parents").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"the parent's weights in .* are not those of the parent .* Delete it"):
        train(small("seed=1"))


@pytest.mark.trains
def test_a_run_does_not_go_on_with_another_parent(small, monkeypatch):
    cfg = small("runtime.checkpoint_every=1")
    train_and_interrupt(cfg, monkeypatch, 3)
    monkeypatch.setattr(Parent, "fingerprint", lambda self: "0" * 16)
    with pytest.raises(ValueError, match=r"began with a parent of fingerprint .* has 0000000000000000 now"):
        train(cfg)
    assert Run.create(cfg, {}).checkpoint.exists()
