"""What every option of decoding keeps under every attention pattern. The options and the patterns are those of conf/:
another YAML is another row here. A pair that an option does not take is refused with the reason that it states."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
from common import EOS_ID, MASK_ID, ROOT, option_yaml, options, pattern_of, shared
from omegaconf import OmegaConf

from dlm.config.build import make
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.types import generator

SIZE, NEW = 4, 10
# Of different lengths: some end with a block and some inside one. One repeats itself.
PROMPTS = [[5, 6, 7, 8, 9], [11], [30, 31, 32, 33], [12, 13, 14, 12, 13, 14, 12]]
EOS = (EOS_ID, 17, 24, 38)  # so many that some sequences end early
REQUEST = Request(PROMPTS, NEW, EOS)
# With these the model, whose probabilities are about 0.3, commits one token in some forwards and several in others.
LIVELY = {"threshold": 0.25, "bound": 1.5, "tokens_per_step": 2}
ONE_TOKEN = {"threshold": 1.0, "bound": 0.0, "tokens_per_step": 1}


@cache
def settings(name: str):
    return option_yaml("decoding", name)


@cache
def decoder(name: str, one_token: bool = False, temperature: float = 0.0):
    """An option, with values of its own keys that are lively or give one token per forward."""
    values = (ONE_TOKEN if one_token else LIVELY) | {"temperature": temperature}
    return make(OmegaConf.merge(settings(name), {key: value for key, value in values.items() if key in settings(name)}))


@cache
def scorer(pattern: str) -> Denoiser:
    made, model = pattern_of(pattern, SIZE), shared("llama")
    return Denoiser(model, made, MASK_ID, made.requires_token_shift, layer_types(model))


PAIRS = [(name, pattern) for name in options("decoding") for pattern in options("attention")]
TAKEN = [(name, pattern) for name, pattern in PAIRS if decoder(name).takes(scorer(pattern).pattern) is None]
ONE_EACH = list({name: (name, pattern) for name, pattern in TAKEN}.values())
every_pair = pytest.mark.parametrize(("name", "pattern"), TAKEN)


@dataclass
class Watch:
    """What `on_step` sees of each sequence, by its number: the forwards it took part in, those at each start of its
    current block, and the masks that each left."""

    forwards: Counter = field(default_factory=Counter)
    at: Counter = field(default_factory=Counter)
    masks: dict[int, list[int]] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    where: dict[int, int] = field(default_factory=dict)

    def __call__(self, canvas) -> None:
        for n, number in enumerate(canvas.index.tolist()):
            if number in self.done:
                continue
            prompt = PROMPTS[number]
            assert canvas.x[n, : len(prompt)].tolist() == prompt, "the prompt has changed"
            self.forwards[number] += 1
            self.at[number, self.where.get(number, -1)] += 1
            self.where[number] = int(canvas.start[n])
            self.masks.setdefault(number, []).append(int(canvas.masked[n].sum()))
            self.done |= {number} if bool(canvas.finished[n]) else set()


@cache
def decoded(name: str, pattern: str):
    """The prompts side by side, and what was seen of it."""
    watch = Watch()
    return decoder(name).generate(scorer(pattern), replace(REQUEST, on_step=watch)), watch


@pytest.mark.parametrize(("name", "pattern"), [pair for pair in PAIRS if pair not in TAKEN])
def test_a_pattern_that_an_option_does_not_take_is_refused_with_its_reason_before_any_forward(name, pattern):
    steps, reason = [], decoder(name).takes(scorer(pattern).pattern)
    with pytest.raises(ValueError, match=re.escape(reason)):
        decoder(name).generate(scorer(pattern), replace(REQUEST, on_step=steps.append))
    assert steps == []


def test_every_option_takes_some_pattern_and_every_pattern_is_taken():
    assert {name for name, _ in TAKEN} == set(options("decoding"))
    assert {pattern for _, pattern in TAKEN} == set(options("attention"))


def test_the_page_on_decoding_says_which_option_takes_which_pattern():
    page = (ROOT / "docs" / "decoding.md").read_text(encoding="utf-8")
    takes = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|", page, re.MULTILINE))
    assert takes.keys() <= set(options("decoding")) and len(takes) > 10
    patterns = [pattern for pattern in options("attention") if f"`{pattern}`" in page]
    for name, said in takes.items():
        named = patterns if said == "any" else sorted(re.findall(r"`(\w+)`", said))
        assert named == [pattern for pattern in patterns if (name, pattern) in TAKEN], name


def test_forwards_over_the_cache_are_made_and_counted_in_one_place():
    files = (ROOT / "dlm" / "decoding").rglob("*.py")
    assert [file.name for file in files if re.search(r"past_key_values=|nfe \+=", file.read_text())] == ["plan.py"]


@every_pair
def test_no_mask_is_left_and_an_answer_ends_with_eos_or_at_its_length(name, pattern):
    made, _ = decoded(name, pattern)
    assert len(made) == len(PROMPTS)
    for g in made:
        assert MASK_ID not in g.tokens and 1 <= len(g.tokens) <= NEW
        assert not set(g.tokens[:-1]) & set(EOS) and (len(g.tokens) == NEW or g.tokens[-1] in EOS)
        assert len(g.step) == len(g.confidence) == len(g.tokens)
        assert min(g.step) >= 1 and max(g.step) <= g.nfe


@every_pair
def test_nfe_is_the_number_of_forwards_and_none_is_idle(name, pattern):
    """No forward leaves more masks than it found, and at one start of the block there are no more forwards than it has
    positions."""
    made, watch = decoded(name, pattern)
    assert [g.nfe for g in made] == [watch.forwards[n] for n in range(len(PROMPTS))]
    assert max(watch.at.values()) <= SIZE
    for masks in watch.masks.values():
        assert masks == sorted(masks, reverse=True)


@every_pair
def test_a_sequence_ends_with_the_forward_that_commits_the_last_token_of_its_answer(name, pattern):
    """Also where that is an EOS inside a block. A loop that revises may look at the block again until it settles."""
    for g in decoded(name, pattern)[0]:
        settling = SIZE if getattr(decoder(name).loop, "revise", False) else 1
        assert max(g.step) <= g.nfe < max(g.step) + settling


@every_pair
def test_with_one_token_per_forward_there_are_as_many_forwards_as_tokens(name, pattern):
    """Of whole blocks, as a block is always filled. Options without such a setting take no more."""
    made = decoder(name, one_token=True).generate(scorer(pattern), Request([[5] * SIZE, [6] * 2 * SIZE], 2 * SIZE))
    exact = bool(ONE_TOKEN.keys() & settings(name).keys())
    for g in made:
        assert len(g.tokens) == 2 * SIZE
        assert g.nfe == 2 * SIZE if exact else g.nfe <= 2 * SIZE


@every_pair
def test_a_ragged_batch_gives_what_single_prompts_give_whatever_its_size(name, pattern):
    """Tokens, forwards, rows and steps are those of the prompt alone (I5)."""

    def told(made):
        return [(g.tokens, g.nfe, g.rows, g.step) for g in made]

    batched, _ = decoded(name, pattern)
    single = [decoder(name).generate(scorer(pattern), replace(REQUEST, prompts=[p]))[0] for p in PROMPTS]
    assert told(batched) == told(single)
    assert told(decoder(name).generate(scorer(pattern), replace(REQUEST, batch_size=3))) == told(single)


@every_pair
def test_rows_are_what_the_network_reads(name, pattern):
    """Of one prompt, for which nothing is padded. What a loop reads before its first counted forward (the oracle's
    reference) does not count."""
    read, first = [], []
    handle = (
        shared("llama")
        .get_decoder()
        .register_forward_pre_hook(
            lambda _, args, kwargs: read.append(kwargs["position_ids"].numel()), with_kwargs=True
        )
    )
    try:
        request = Request(PROMPTS[:1], NEW, EOS, on_step=lambda canvas: first.append(len(read)))
        (made,) = decoder(name).generate(scorer(pattern), request)
    finally:
        handle.remove()
    assert len(first) == made.nfe and first == list(range(first[0], first[0] + made.nfe))
    assert made.rows == sum(read[first[0] - 1 :])


@every_pair
def test_a_stop_cuts_the_answer_and_changes_nothing_before(name, pattern):
    free, _ = decoded(name, pattern)

    def stop(tokens):
        return len(tokens) >= 3

    for g, whole in zip(decoder(name).generate(scorer(pattern), replace(REQUEST, stop=stop)), free, strict=True):
        assert g.tokens == whole.tokens[: len(g.tokens)]
        assert len(g.tokens) >= min(3, len(whole.tokens)) and g.nfe <= whole.nfe
        assert len(g.tokens) == len(whole.tokens) or g.nfe < whole.nfe


@pytest.mark.parametrize(("name", "pattern"), ONE_EACH)
def test_a_sampled_answer_is_that_of_its_generator(name, pattern):
    if "temperature" not in settings(name):
        pytest.skip("it is greedy")
    sampling = decoder(name, temperature=2.0)
    first, again, other = (
        sampling.generate(scorer(pattern), replace(REQUEST, generator=generator(seed))) for seed in (1, 1, 2)
    )
    assert first == again and [g.tokens for g in first] != [g.tokens for g in other]


@pytest.mark.parametrize(("name", "pattern"), ONE_EACH)
def test_a_compiled_step_gives_the_same_or_is_refused_by_name(name, pattern, uncompiled):
    """Fixed shapes, and numbers as tensors, without a compiler."""
    asked = replace(REQUEST, compile=True)
    if decoder(name).loop.compiles:
        assert decoder(name).generate(scorer(pattern), asked) == decoded(name, pattern)[0]
    else:
        with pytest.raises(ValueError, match=f"{type(decoder(name)).__name__} .* set compile=False"):
            decoder(name).generate(scorer(pattern), asked)


@pytest.mark.parametrize(("name", "pattern"), ONE_EACH)
def test_the_model_stays_in_its_mode_also_where_decoding_fails(name, pattern):
    class Failure(Exception):
        pass

    def fail(canvas):
        assert not shared("llama").training
        raise Failure

    scorer(pattern).train()
    try:
        with pytest.raises(Failure):
            decoder(name).generate(scorer(pattern), replace(REQUEST, on_step=fail))
        assert scorer(pattern).training and shared("llama").training
    finally:
        scorer(pattern).eval()


def test_a_request_that_leaves_nothing_to_decode_is_refused_as_it_is_made():
    for wrong in ({"max_new_tokens": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            Request(**({"prompts": PROMPTS, "max_new_tokens": 1} | wrong))
    assert [Request(PROMPTS, 1, eos).eos_ids for eos in (None, 3, [3, 4])] == [(), (3,), (3, 4)]


@pytest.mark.parametrize("name", options("decoding"))
def test_at_another_threshold_a_decoder_is_the_one_with_that_setting_and_stays_as_it_was(name):
    before = decoder(name)
    if "threshold" not in settings(name):
        with pytest.raises(ValueError, match="has no threshold"):
            before.at(0.7)
        return
    expected = make(OmegaConf.merge(settings(name), {"threshold": 0.7}))
    assert vars(before.at(0.7).rule) == vars(expected.rule) and before.at(0.7).loop is before.loop
    assert before.threshold == LIVELY["threshold"]


@pytest.mark.parametrize("name", options("decoding"))
def test_what_an_option_exports_are_settings_of_the_exported_rule(name):
    """Without revising, other confidences or loops, of which the exported code knows nothing."""
    exported, rule = decoder(name).exported(), decoder(name).rule
    if exported is not None:
        assert exported.keys() <= {"threshold", "tokens_per_step"} and exported.items() <= vars(rule).items()
        assert type(decoder(name).loop) is Blocks and not decoder(name).loop.sliding and rule.remask_below == 0
        assert type(rule).confidence is CommitRule.confidence and type(rule).rank is CommitRule.rank
