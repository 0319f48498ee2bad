"""What every option of decoding gives for a fixed set of prompts, kept so that a change of structure changes nothing:
the tokens, the forwards, the rows they read, and the forward that committed each token.

    python tests/test_golden_decoding.py [--anew]

adds to tests/data/golden_decoding.json what is new, and with --anew writes all of it. Do that only where another
behaviour is meant, and say in the commit which.
Everything is computed in float64 and far from ties, so that the machine does not matter.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from common import EOS_ID, PATTERNS, denoiser, option_yaml, options, shared
from omegaconf import DictConfig, OmegaConf

from dlm.config.build import make
from dlm.decoding.engine.request import Request
from dlm.types import generator

pytestmark = pytest.mark.trains

GOLDEN = Path(__file__).parent / "data" / "golden_decoding.json"
REFUSED = "refused"
ADD = "run python tests/test_golden_decoding.py, which adds what is new"
# Of different lengths: with blocks of 4 some end with a block and some inside one. One repeats itself, for lookup.
PROMPTS = [
    [5, 6, 7, 8, 9],
    [11],
    [20, 21, 22, 23, 24, 25, 26, 27, 28],
    [30, 31, 32, 33],
    [12, 13, 14, 12, 13, 14, 12],
    [40, 41, 42],
]
NEW_TOKENS = 7
EOS = (EOS_ID, 17, 24, 38)  # so many that some sequences end early
# With these the models, whose probabilities are about 0.3, commit one token in some forwards and several in others.
LIVELY = {"threshold": 0.25, "bound": 1.5, "tokens_per_step": 2}
# Each option is decoded with each of these values of each of its keys.
VALUES = {
    "threshold": [0.0, 0.4, 1.0],
    "bound": [0.0],
    "ngram": [1],
    "length": [2],
    "sliding": [True, False],
    "refresh": [1, 2],
    "add_at": [0.5, 1.0],
    "activate_at": [0.25],
    "remask_below": [0.0, 0.2],
    "fused": [True],
    "accept": [0.25],
    "revise": [False],
    "hard": [True],
    "max_forwards": [2],
    "temperature": [0.7],
}


def kept() -> dict[str, dict]:
    return json.loads(GOLDEN.read_text())


class Case(NamedTuple):
    """A way to decode the prompts; sequences leave the batch and others join it."""

    architecture: str = "llama"
    pattern: str = "block"
    token_shift: bool = False
    block_size: int = 4
    batch_size: int = 4
    eos: tuple[int, ...] | None = EOS
    stops: bool = False
    key: str | None = None
    value: bool | float | None = None

    @property
    def name(self) -> str:
        """The fields that say which model it is, and those that are not the default."""
        named, usual = self._asdict(), Case()._asdict()
        return " ".join(f"{k}={v}" for k, v in named.items() if k in Case._fields[:3] or v != usual[k])


def cases(option: DictConfig) -> Iterator[Case]:
    """The patterns with a model of full attention, some with one that has sliding windows, and, with the patterns that
    have an exact cache and that have none, whatever else can be set."""
    for pattern in PATTERNS:
        yield from (Case(pattern=pattern, token_shift=shift) for shift in (False, True))
    yield from (
        Case("gemma3_text", *mode) for mode in [("block", True), ("block_token_causal", False), ("bidir", False)]
    )
    for key in sorted(option.keys() & VALUES.keys()):
        for value in VALUES[key]:
            yield Case(pattern="block", token_shift=True, key=key, value=value)
            yield Case(pattern="bidir", key=key, value=value)
    yield from (Case(block_size=size) for size in (3, 8))
    yield from (Case(batch_size=1), Case(eos=None), Case(eos=(24,)), Case(stops=True))
    yield from (Case(pattern="bidir", eos=None), Case(pattern="bidir", stops=True))


def decoded(decoder, scorer, case: Case):
    """The one call of the public entry."""
    request = Request(
        PROMPTS,
        NEW_TOKENS,
        case.eos,
        batch_size=case.batch_size,
        generator=generator(0),
        stop=(lambda tokens: sum(tokens) % 3 == 0) if case.stops else None,
    )
    return decoder.generate(scorer, request)


def configured(name: str) -> DictConfig:
    """An option with what it needs and with lively values."""
    option = option_yaml("decoding", name)
    return OmegaConf.merge(option, {key: value for key, value in LIVELY.items() if key in option})


def outcome(option: DictConfig, case: Case) -> str | dict[str, list]:
    """What a case gives, prompt by prompt."""
    scorer = denoiser(shared(case.architecture), case.pattern, case.block_size, case.token_shift)
    changed = {} if case.key is None else {case.key: case.value}
    try:
        scorer.pattern.check(scorer.pattern.block_size, case.token_shift)
        made = decoded(make(OmegaConf.merge(option, changed)), scorer, case)
    except ValueError:
        return REFUSED
    return {name: [getattr(g, name) for g in made] for name in ("tokens", "nfe", "rows", "step")}


def outcomes(name: str, every: int = 1) -> dict[str, str | dict[str, list]]:
    """What an option gives in `every`-th case."""
    option = configured(name)
    return {case.name: outcome(option, case) for case in list(cases(option))[::every]}


def completed(name: str, known: dict[str, str | dict[str, list]]) -> dict[str, str | dict[str, list]]:
    """What an option gives in every case, computed where it is not known."""
    option = configured(name)
    return {case.name: known.get(case.name) or outcome(option, case) for case in cases(option)}


@pytest.mark.parametrize("name", options("decoding"))
def test_an_option_decodes_as_it_always_has_in_every_fourth_case(name):
    golden, found = kept().get(name, {}), outcomes(name, 4)
    assert not found.keys() - golden.keys(), ADD
    assert {case: made for case, made in found.items() if made != golden[case]} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", options("decoding"))
def test_an_option_decodes_as_it_always_has(name):
    golden, found = kept().get(name, {}), outcomes(name)
    assert found.keys() == golden.keys(), ADD
    assert {case: made for case, made in found.items() if made != golden[case]} == {}


def test_the_kept_outcomes_are_of_all_options_and_tell_them_apart():
    golden = kept()
    assert sorted(golden) == options("decoding"), ADD
    for name, outcomes_of_option in golden.items():
        assert outcomes_of_option.keys() == {case.name for case in cases(configured(name))}, ADD
        made = [outcome for outcome in outcomes_of_option.values() if outcome != REFUSED]
        assert any(len(tokens) < NEW_TOKENS for outcome in made for tokens in outcome["tokens"]), f"{name}: no EOS"
        different = {json.dumps(outcome) for outcome in made}
        assert len(different) >= 5, f"{name}: nothing that can be set makes a difference"


def lines(golden: dict[str, dict]) -> str:
    """JSON with a line for each case."""
    groups = [
        f"{json.dumps(name)}: {{\n" + ",\n".join(f"{json.dumps(c)}: {json.dumps(o)}" for c, o in kept.items()) + "\n}"
        for name, kept in golden.items()
    ]
    return "{\n" + ",\n".join(groups) + "\n}\n"


if __name__ == "__main__":
    known = {} if "--anew" in sys.argv else kept()
    GOLDEN.write_text(lines({name: completed(name, known.get(name, {})) for name in options("decoding")}))
