"""What each commit rule keeps, by hand and against naive searches; revision; what forwards have read."""

import itertools

import pytest
import torch
from common import EOS_ID, MASK_ID, config, denoiser, let_it_say

from dlm.config.build import make
from dlm.decoding.engine.commit import select_commits
from dlm.decoding.engine.request import Request
from dlm.decoding.entropy import Entropy
from dlm.decoding.fixed import Fixed
from dlm.decoding.margin import Margin
from dlm.decoding.oracle import Oracle
from dlm.decoding.prefix import Prefix
from dlm.decoding.remask import Remask
from dlm.decoding.sub_block import SubBlock
from dlm.decoding.threshold import Threshold
from dlm.measurement.trace import Trace, decode_recording
from dlm.types import generator

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28], [30, 31, 32, 33], [40, 41]]


NEW = 14


RULES = [Prefix(0.1, sliding=False), Entropy(5.0), Margin(0.03), Remask(0.15, 0.5)]


def decode(scorer, decoder, prompts=PROMPTS, new=NEW, eos=EOS_ID, **kwargs):
    return decoder.generate(scorer, Request(prompts, new, eos, **kwargs))


def test_a_prefix_ends_at_the_first_doubt_and_has_the_first_token_always():
    confidence = torch.tensor([[0.1, 0.9, 0.8, 0.3, 0.9], [-1, -1, 0.2, 0.95, -1], [0.9, 0.9, 0.9, 0.9, 0.9]])
    assert Prefix(0.8).rule.select(confidence, confidence).tolist() == [
        [True, True, True, False, False],
        [False, False, True, True, False],
        [True, True, True, True, True],
    ]
    assert Prefix(None).rule.select(confidence, confidence).int().argmax(1).tolist() == [0, 2, 0]
    assert Prefix(None).rule.select(confidence, confidence).sum().item() == 3
    assert Prefix(0.0).rule.select(confidence, confidence).equal(confidence >= 0)


def test_a_prefix_is_committed_without_gaps(llama):
    """The most confident position, which other rules always commit, may lie further to the right."""
    for sliding in (False, True):
        for made in decode(denoiser(llama, "block", 4, False), Prefix(0.1, sliding=sliding), eos=None):
            assert made.step == sorted(made.step) and made.nfe < NEW


def test_a_sub_block_is_finished_before_the_next_and_the_first_token_of_a_block_before_all():
    confidence = torch.tensor([[0.1, 0.9, 0.9, 0.9], [-1, 0.2, 0.9, 0.9], [-1, 0.9, 0.9, 0.9], [-1, -1, 0.9, 0.7]])
    rule = SubBlock(0.8, 2).rule
    assert rule.select(confidence, None).tolist() == [
        [True, False, False, False],
        [False, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
    ]
    assert rule.rank(confidence).masked_fill(confidence < 0, -torch.inf).argmax(1).tolist() == [0, 1, 1, 2]


def test_the_entropy_bound_by_hand():
    """Entropies 0.1, 0.5, 0.05, 1.0 in ascending order have 0, 0.05, 0.15, 0.65 before them."""
    confidence = torch.exp(-torch.tensor([[0.1, 0.5, 0.05, 1.0, 0.0]], dtype=torch.float64))
    confidence[0, 4] = -1  # nothing is masked there
    for bound, expected in ((0.0, [2]), (0.05, [0, 2]), (0.2, [0, 1, 2]), (0.7, [0, 1, 2, 3])):
        kept = Entropy(bound + 1e-12).rule.select(confidence, confidence)[0]
        assert kept.nonzero()[:, 0].tolist() == expected


def test_the_entropy_bound_keeps_as_many_as_any_set_within_it():
    """Against all subsets."""
    for entropy in torch.rand(20, 6, generator=generator(0), dtype=torch.float64):
        kept = Entropy(0.8).rule.select(torch.exp(-entropy)[None], None)[0]
        sets = [list(s) for n in range(1, 7) for s in itertools.combinations(range(6), n)]
        within = [s for s in sets if entropy[s].sum() - entropy[s].max() <= 0.8]
        assert int(kept.sum()) == max(len(s) for s in within) and kept.nonzero()[:, 0].tolist() in within


def test_confidences_by_hand():
    """The mask token's logit is -inf."""
    logits = torch.tensor([[[0.5, 0.3, 0.2, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0], [1.0, 0.0, 0.0, 0.0]]]).log()
    token, margin = Margin(0.1).rule.sample(logits, None)
    assert token[0, [0, 2]].tolist() == [0, 0]
    torch.testing.assert_close(margin, torch.tensor([[0.2, 0.0, 1.0]]))
    _, certainty = Entropy(0.1).rule.sample(logits, None)
    torch.testing.assert_close(certainty, torch.tensor([[0.3571256, 1 / 3, 1.0]]))  # exp(-1.0296530)
    torch.testing.assert_close(Threshold(0.9).rule.sample(logits, None)[1], torch.tensor([[0.5, 1 / 3, 1.0]]))


@pytest.mark.parametrize("pattern", ["block", "bidir"])
@pytest.mark.parametrize("one_token", [Entropy(0.0), Margin(1.0), Remask(1.0, 0.5), Prefix(None, sliding=False)])
@pytest.mark.parametrize("one_block", [Entropy(100.0), Margin(0.0), Remask(0.0, 0.0), Prefix(0.0, sliding=False)])
def test_the_limits_of_the_rules_are_one_token_and_one_block_per_forward(llama, pattern, one_token, one_block):
    scorer = denoiser(llama, pattern, 4, False)
    prompts = [[5] * 4, [6] * 8]
    assert [sorted(g.step) for g in decode(scorer, one_token, prompts, 8, None)] == [list(range(1, 9))] * 2
    assert [g.step for g in decode(scorer, one_block, prompts, 8, None)] == [[1] * 4 + [2] * 4] * 2


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", ["bidir", "block_noisy", "block"])
@pytest.mark.parametrize("decoder", [*RULES, Oracle()], ids=lambda d: type(d).__name__)
def test_a_ragged_batch_gives_what_single_prompts_give(llama, pattern, token_shift, decoder):
    """A ragged batch gives the tokens, forwards, steps and rows of single prompts (I5)."""
    scorer = denoiser(llama, pattern, 4, token_shift)
    single = [decode(scorer, decoder, [prompt])[0] for prompt in PROMPTS]
    assert decode(scorer, decoder) == decode(scorer, decoder, batch_size=2) == single
    assert any(g.tpf > 1 for g in single)


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("decoder", RULES, ids=lambda d: type(d).__name__)
def test_fixed_shapes_give_the_same(llama, uncompiled, decoder, token_shift):
    scorer = denoiser(llama, "block", 4, token_shift)
    assert decoder.generate(scorer, Request(PROMPTS, NEW, EOS_ID, batch_size=2, compile=True)) == decode(
        scorer, decoder
    )


class Script:
    """What a denoiser says: in forward i, slot s predicts `plan[i][s] = (token, probability)`."""

    def __init__(self, plan):
        self.plan, self.calls = plan, 0

    def __call__(self, scored, position_ids, **kwargs):
        logits = torch.full((len(scored), 61), -torch.inf)
        for row, slot in zip(logits, position_ids.flatten()[scored].tolist(), strict=True):
            token, probability = self.plan[self.calls].get(slot, (9, 1.0))
            row[:50] = torch.tensor((1 - probability) / 49).log()
            row[token] = torch.tensor(probability).log()
        self.calls += 1
        return logits


def scripted(llama, plan):
    scorer = denoiser(llama, "block", 4, False)
    let_it_say(scorer, Script(plan))
    return scorer


def test_revision_by_hand(llama):
    """Forward 1 commits slots 0-2. In forward 2 the tokens of slots 0 and 1 have become improbable: slot 3 is committed
    alone, so none is taken back; then there would be no end. In the second block forward 2 commits two and takes back
    one, the less probable; forward 3 commits another token there."""
    first = {0: (2, 0.95), 1: (3, 0.95), 2: (4, 0.95), 3: (5, 0.5)}
    second = {0: (8, 0.9), 1: (8, 0.9), 3: (5, 0.6)}
    third = {4: (2, 0.95), 5: (3, 0.95), 6: (4, 0.5), 7: (5, 0.5)}
    fourth = {4: (8, 0.8), 5: (8, 0.85), 6: (4, 0.95), 7: (5, 0.95)}
    fifth = {5: (7, 0.95)}
    scorer = scripted(llama, [first, second, third, fourth, fifth, fifth])
    (made,) = decode(scorer, Remask(0.9, 0.3), [[]], 8, None)
    # Of slot 4 the forward says 8 with 0.8, of its token 2 it says 0.2 / 49; of slot 5, 0.15 / 49: the less probable.
    assert made.tokens == [2, 3, 4, 5, 2, 7, 4, 5]
    assert made.step == [1, 1, 1, 2, 3, 5, 4, 4]
    assert made.nfe == 5


def test_an_eos_and_what_lies_behind_it_is_not_revised(llama):
    """Forward 1 commits EOS at slot 1 and, behind it, the rest; forward 2 doubts the EOS."""
    first = {0: (2, 0.5), 1: (EOS_ID, 0.95), 2: (4, 0.5), 3: (5, 0.5)}
    scorer = scripted(llama, [first, {0: (3, 0.5)}])
    (made,) = decode(scorer, Remask(0.9, 0.9), [[]], 8)
    assert made.tokens == [3, EOS_ID] and made.nfe == 2


@pytest.mark.parametrize(("first_is_final", "kept"), [(True, [0, 1]), (False, [1])])
def test_a_first_token_is_alone_where_an_eos_fills_the_rest_of_its_block(first_is_final, kept):
    """With the shift its score is final then, and another forward would say the same."""
    is_eos = torch.tensor([[False, True, False, False]])
    confidence = torch.tensor([[0.5, 0.95, 0.3, 0.3]])
    keep, tail = select_commits(
        Threshold(0.9).rule, is_eos, confidence, is_eos | ~is_eos, first_is_final=first_is_final
    )
    assert keep[0].nonzero()[:, 0].tolist() == kept and tail[0].nonzero()[:, 0].tolist() == [2, 3]


def test_what_is_predicted_behind_an_eos_uses_up_no_step(llama):
    """Further EOS, which are easy, and other tokens, which no loss may have scored."""
    end = {1: (EOS_ID, 0.6), 2: (EOS_ID, 0.95), 3: (4, 0.5)}
    (made,) = decode(scripted(llama, [{0: (2, 0.9)} | end, end]), Fixed(1), [[]], 8)
    assert made.tokens == [2, EOS_ID] and made.nfe == 2


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", ["bidir", "block"])
def test_revision_ends_keeps_the_prompt_and_at_zero_is_the_threshold_rule(llama, pattern, token_shift):
    scorer = denoiser(llama, pattern, 8, token_shift)
    plain = decode(scorer, Threshold(0.15))
    assert decode(scorer, Remask(0.15, 0.0)) == plain
    masked, revised = {}, []

    def on_step(canvas):
        for n, number in enumerate(canvas.index.tolist()):
            now = canvas.masked[n].clone()
            before = masked.get(number, now)
            assert now.sum() < before.sum() or number not in masked or canvas.finished[n]
            revised.append(int((now & ~before).sum()))
            masked[number] = now
            assert canvas.x[n, : len(PROMPTS[number])].tolist() == PROMPTS[number]
            assert (canvas.x[n, now.nonzero()[:, 0]] == MASK_ID).all()

    made = decode(scorer, Remask(0.15, 0.5), on_step=on_step, batch_size=8)
    assert sum(revised) > 0 and [g.tokens for g in made] != [g.tokens for g in plain]


def test_the_recorder_decides_as_the_decoder_that_it_watches(llama):
    scorer = denoiser(llama, "block", 4, False)
    for decoder in RULES:
        made, seen = decode_recording(scorer, decoder.rule, Request(PROMPTS[:1], NEW, EOS_ID))
        assert [made] == decode(scorer, decoder, PROMPTS[:1])
        assert len(seen) == made.nfe
    with pytest.raises(ValueError, match="set decoding.sliding=false"):
        Trace(Prefix(0.9), "val", 1, 8, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["decoding=prefix", "decoding.threshold=-1"], "threshold -1 must be >= 0, or null"),
        (["decoding=entropy", "decoding.bound=-0.1"], "bound -0.1 must be >= 0 nats"),
        (["decoding=remask", "decoding.remask_below=1.0"], "remask_below 1.0 must lie in"),
        (["decoding=margin", "decoding.threshold=-1"], "threshold -1 must be >= 0"),
        (["decoding=sub_block", "decoding.threshold=-1"], "threshold -1 must be >= 0"),
        (["decoding=sub_block", "decoding.size=0"], "decoding.size 0 must be at least 1 token"),
    ],
)
def test_bad_values_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        make(config(*overrides).decoding)
