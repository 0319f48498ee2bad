"""The variants that `docs/how_to/new_variant.md` shows are right: whoever copies them begins with working code."""

import re

import pytest
import torch
import yaml
from common import EOS_ID, MASK_ID, PATTERNS, ROOT, denoiser

from dlm.attention.block import Block
from dlm.decoding.engine.request import Request
from dlm.decoding.threshold import Threshold
from dlm.loss.mean import Mean
from dlm.types import Batch, Noised, Rows, Scored, generator

PAGE = (ROOT / "docs" / "how_to" / "new_variant.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown():
    """All that the Python of the page defines, run from top to bottom; what it asserts itself is checked by that."""
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        exec(compile(code, "new_variant.md", "exec"), names)
    return names


def test_every_yaml_of_the_page_names_a_class_that_it_shows_and_values_that_it_takes(shown):
    nodes = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)]
    made = []
    for node in (node for node in nodes if "_target_" in node):  # an auxiliary loss has its name above it, and no code
        module, _, name = node.pop("_target_").rpartition(".")
        assert f"# {module.replace('.', '/')}.py\n" in PAGE
        made.append(shown[name](**({**node, "block_size": 4} if "block_size" in node else node)))
    assert len(made) == 4


def test_a_sink_that_forgets_the_blocks_is_refused_as_the_page_says(shown):
    class Forgetful(shown["SinkWindow"]):
        def allowed(self, q, k):
            return super().allowed(q, k) | (k.clean & (k.position < self.sink))

    with pytest.raises(ValueError, match="leaks") as refused:
        Forgetful(4, 2, 4)
    assert str(refused.value).replace("Forgetful", "SinkWindow") in PAGE


def test_the_pattern_at_another_block_size_keeps_its_options(shown):
    pattern = shown["SinkWindow"](4, 3, sink=2, noise_per="sequence").at(8)
    assert pattern == shown["SinkWindow"](8, 3, sink=2, noise_per="sequence") and pattern.window == 3


def test_a_window_of_all_blocks_is_the_block_pattern(shown):
    position = torch.arange(16).repeat(2)
    rows = Rows(torch.arange(32) >= 16, torch.zeros_like(position), position)
    q, k = rows[:, None], rows[None]
    wide = shown["SinkWindow"](4, window=4, sink=0)
    assert wide.blockwise and torch.equal(wide.visible(q, k), Block(4).visible(q, k))
    assert not shown["SinkWindow"](8, window=1, sink=4).blockwise


def test_the_scheme_hides_a_prefix_of_every_block(shown):
    x0 = torch.ones(3, 12, dtype=torch.long)
    position = torch.arange(12).expand(3, 12)
    batch = Batch(x0, torch.ones_like(x0, dtype=torch.bool), torch.zeros_like(x0), position)
    masked = shown["LeftToRight"]()(batch, Block(4).units(batch), MASK_ID, generator(0)).masked.view(-1, 4)
    assert (masked.int().diff(dim=1) <= 0).all() and masked[:, 0].all()


def test_the_loss_is_the_mean_where_gamma_is_0_and_smaller_elsewhere(shown):
    logits, target = torch.randn(6, 9, generator=generator(1)), torch.arange(6)
    masked = torch.ones(1, 6, dtype=torch.bool)
    batch = Batch(target[None], masked, torch.zeros(1, 6, dtype=torch.long), target[None])
    noised = Noised(target[None], masked, masked.float())

    def value(loss):
        scored = Scored(target, torch.ones(6), target, loss.weights(batch, noised)[masked])
        return loss(logits, scored, 6).loss

    assert torch.equal(value(shown["Focal"](0.0)), value(Mean()))
    assert value(shown["Focal"](2.0)) < value(Mean())


def test_the_rule_commits_its_fraction_of_what_is_masked(shown):
    confidence = torch.tensor([[0.1, 0.9, 0.8, 0.3], [-1.0, 0.2, -1.0, 0.7]])
    rank = confidence.masked_fill(confidence < 0, -torch.inf)
    select = shown["TopFraction"](0.5).rule.select
    assert select(confidence, rank).tolist() == [[False, True, True, False], [False, False, False, True]]
    assert torch.equal(shown["TopFraction"](1.0).rule.select(confidence, rank), confidence >= 0)


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_loop_without_a_cache_has_the_tokens_and_forwards_of_the_one_with_it(shown, llama, pattern, token_shift):
    if PATTERNS[pattern].requires_token_shift and not token_shift:
        pytest.skip("it needs the shift")
    scorer = denoiser(llama, pattern, 4, token_shift)
    request = Request([[5, 6, 7, 8, 9], [11], [30, 31, 32, 33]], 10, (EOS_ID, 17))
    got, expected = (made(0.25).generate(scorer, request) for made in (shown["Uncached"], Threshold))
    assert [(g.tokens, g.nfe, g.step) for g in got] == [(g.tokens, g.nfe, g.step) for g in expected]
    assert all(g.rows >= e.rows for g, e in zip(got, expected, strict=True))
