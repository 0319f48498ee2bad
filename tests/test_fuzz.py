"""Whatever it is given, the tool either works or says what is wrong with it before any compute."""

import copy
import json
import math
import random

import pytest
import torch
from common import MASK_ID, PATTERNS, config, denoiser, options, tiny
from fabricated_runs import SWEEP, TWO, fabricate, found

pytest.importorskip("hypothesis")  # in the test extra
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.tables.collect import add_point
from analysis.tables.earlier import Earlier
from analysis.tables.results import COLUMNS, Results
from dlm.conversion.module import Conversion
from dlm.conversion.prepare import prepare
from dlm.data.packing import PackedRows, Windows, collate
from dlm.decoding.engine.request import Request
from dlm.decoding.threshold import Threshold
from dlm.loss.nelbo import Nelbo
from dlm.masking.base import COUNTS
from dlm.masking.uniform import Uniform
from dlm.runs.__main__ import main
from dlm.train import train
from dlm.types import generator

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]

quick = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

ODD = st.sampled_from([-1, 0, 1, 2, 3, 7, 8, 16, 64, 1000, 0.5, 1e-30, 1e30, "null", "nan", "inf", "text", "[]", "{}"])
VALUES = {  # likely ones, beside the odd ones
    "block_size": [1, 4, 8, 16],
    "token_shift": ["true", "false"],
    "lr": [1e-3, 1e-5],
    "seed": [0, 1],
    "tokens": [512],
    "data.length": [16, 32, 64],
    "data.batch_size": [1, 4],
    "data.val_rows": [2],
    "masking.t_min": [0.0, 0.1, 0.9],
    "masking.t_max": [0.5, 1.0],
    "masking.count": list(COUNTS),
    "masking.views": [1, 2],
    "optimizer.warmup": [0.0, 0.5],
    "optimizer.weight_decay": [0.0, 0.1],
    "optimizer.fused": ["true", "false"],
    "trainer.accumulate": [1, 2],
    "trainer.clip": [1.0, "null"],
    "trainer.on_nonfinite": ["stop", "skip"],
    "runtime.val_every": [1, 2],
    "runtime.log_every": [1, 3],
    "runtime.drift_every": [0, 1],
    "runtime.checkpoint_every": [1, 5],
}
GROUPS = ("attention", "masking", "loss", "decoding", "trainable")
SMALL = (
    "evaluation=none",
    "logger=csv",
    "data.length=32",
    "data.batch_size=4",
    "data.val_rows=2",
    "data.mixture={prose: 1.0}",
    "runtime.progress_bar=false",
    "tokens=256",
)


@st.composite
def overrides(draw) -> list[str]:
    """Options of the groups, and a few values of which at most one is odd."""
    chosen = [f"{group}={draw(st.sampled_from(options(group)))}" for group in GROUPS]
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=5))
    values = {key: draw(st.sampled_from(VALUES[key])) for key in keys}
    if keys and keys[0] != "tokens" and draw(st.booleans()):  # 1e30 of them would be trained
        values[keys[0]] = draw(ODD)
    return chosen + [f"{key}={value}" for key, value in values.items()]


def runs_or_is_refused(chosen: list[str], folder, monkeypatch) -> None:
    steps = 0
    step = Conversion.training_step

    def counted(self, batch, batch_idx):
        nonlocal steps
        steps += 1
        return step(self, batch, batch_idx)

    try:
        cfg = config(*SMALL, *chosen, f"runs_dir={folder}")
    except Exception as error:  # Hydra's: a key that this option does not have, or a value that is none
        assert type(error).__module__.startswith(("hydra", "omegaconf")), error
        return
    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "training_step", counted)
        try:
            record = train(cfg)["record"]
        except ValueError as error:
            assert any(option in str(error) for option in (*VALUES, *GROUPS)), error
            assert steps == 0 or "not finite" in str(error), f"refused after {steps} steps: {error}"
        else:
            assert record["status"] == "finished" and steps > 0 and math.isfinite(record["train"]["val/nelbo"])


@pytest.mark.slow
@settings(quick, max_examples=12)
@given(chosen=overrides())
def test_any_combination_of_options_runs_or_is_refused_before_any_compute(chosen, tmp_path_factory, monkeypatch):
    runs_or_is_refused(chosen, tmp_path_factory.mktemp("runs"), monkeypatch)


@pytest.mark.slow
@settings(quick, max_examples=150, derandomize=False, print_blob=True)
@given(chosen=overrides())
def test_many_combinations_of_options_run_or_are_refused(chosen, tmp_path_factory, monkeypatch):
    runs_or_is_refused(chosen, tmp_path_factory.mktemp("runs"), monkeypatch)


LLAMA = tiny("llama", torch.float32)
TOKENS = st.lists(st.sampled_from([0, 1, 2, 3, 59]), max_size=40)  # 0 ends a text, 1 is padding


ROWS = given(
    texts=st.lists(TOKENS, min_size=1, max_size=4),
    length=st.sampled_from([4, 8, 16, 32]),
    pattern=st.sampled_from(sorted(PATTERNS)),
    count=st.sampled_from(sorted(COUNTS)),
    seed=st.integers(0, 3),
)


def has_a_finite_loss_or_is_refused(texts, length, pattern, count, seed):
    try:
        source = Windows(texts, 0)
    except ValueError as error:
        assert "every document is empty" in str(error) and not any(texts)
        return
    scorer = denoiser(LLAMA, pattern, 1 if pattern == "ar" else 4, pattern == "ar")
    rows = PackedRows([source], [1.0], source, length, 4, 1, 0, lambda *_: 0, seed)
    batch = collate([rows[i] for i in range(4)])
    assert batch.x0.shape == (4, length) and not batch.maskable[batch.document < 0].any()
    prepared = prepare(scorer, Uniform(count=count), batch, generator(seed))
    found = Nelbo()(scorer(prepared.inputs), prepared.scored, prepared.num_tokens)
    assert torch.isfinite(found.loss) and torch.isfinite(found.nll).all()


@settings(quick, max_examples=40)
@ROWS
def test_any_tokens_make_rows_with_a_finite_loss_or_are_refused(texts, length, pattern, count, seed):
    """Empty texts, one token, only EOS, only padding, longer than the row."""
    has_a_finite_loss_or_is_refused(texts, length, pattern, count, seed)


@pytest.mark.slow
@settings(quick, max_examples=500)
@ROWS
def test_any_of_many_texts_make_rows_with_a_finite_loss_or_are_refused(texts, length, pattern, count, seed):
    has_a_finite_loss_or_is_refused(texts, length, pattern, count, seed)


@settings(quick, max_examples=40)
@given(
    prompts=st.lists(TOKENS, max_size=3),
    pattern=st.sampled_from(sorted(PATTERNS)),
    new=st.integers(-1, 9),
    eos=st.sampled_from([None, 0, [0, 3]]),
    threshold=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_prompts_are_continued_or_refused(prompts, pattern, new, eos, threshold):
    scorer = denoiser(LLAMA, pattern, 1 if pattern == "ar" else 4, pattern == "ar")
    try:
        made = Threshold(threshold).generate(scorer, Request(prompts, new, eos))
    except ValueError as error:
        assert new < 1 or not all(prompts), error
        return
    assert len(made) == len(prompts)
    for generation in made:
        assert 1 <= len(generation.tokens) <= new and MASK_ID not in generation.tokens


WRONG = st.sampled_from([None, "text", "", [], {}, -1, math.nan, math.inf, True, [None], {"a": 1}])


def places(value, path=()) -> list[tuple]:
    """The path of everything inside a record."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for key, v in inner for p in places(v, (*path, key))]


def spoiled(record: dict, seed: int, value) -> dict:
    """A record with one field gone, replaced or added."""
    rng, record = random.Random(seed), copy.deepcopy(record)
    path = rng.choice(places(record))
    owner = record
    for key in path[:-1]:
        owner = owner[key]
    match seed % 3:
        case 0:
            del owner[path[-1]]
        case 1:
            owner[path[-1]] = value
        case 2:
            record[f"extra_{seed}"] = value
    return record


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A point with a finished run."""
    folder = tmp_path_factory.mktemp("study")
    (folder / f"{SWEEP}.yaml").write_text(TWO)
    point = found(folder)["g"]
    run = fabricate(folder, point, 0.6)
    return folder, point, run, run.record


def is_reported_or_listed(seed, value, study) -> None:
    folder, point, run, record = study
    run.record_path.write_text(
        json.dumps(spoiled(record, seed, value))
    )  # as an older version would, without a checksum
    rows = {name: [] for name in COLUMNS}
    add_point(rows, SWEEP, point, folder, Earlier.none(), set())
    results = Results.of_rows(rows)
    assert len(results.points) == 1 and len(results.runs) == (results.points["state"][0] == "finished")


@settings(quick, max_examples=25)
@given(seed=st.integers(0, 10**6), value=WRONG)
def test_any_record_is_reported_or_listed_as_unreadable(seed, value, study):
    is_reported_or_listed(seed, value, study)


@pytest.mark.slow
@settings(quick, max_examples=300)
@given(seed=st.integers(0, 10**6), value=WRONG)
def test_any_of_many_records_is_reported_or_listed_as_unreadable(seed, value, study):
    is_reported_or_listed(seed, value, study)


@settings(quick, max_examples=60)
@given(seed=st.integers(0, 10**6), value=WRONG)
def test_any_record_is_listed_and_verified(seed, value, study, capsys):
    folder, _, run, record = study
    run.record_path.write_text(json.dumps(spoiled(record, seed, value)))
    for command in ("list", "verify"):
        assert main(["--runs", str(folder), command]) in (0, 1)
    assert run.id in capsys.readouterr().out
