"""From runs and measurements to tidy tables: what the files say is what the tables say."""

import json

import pandas as pd
import pytest
from common import ROOT, config, options
from fabricated_runs import SWEEP, TWO, N, fabricate, found, write_sweep
from omegaconf import OmegaConf
from study_tables import correct

from analysis.plan.sweep import FINISHED, Evaluation
from analysis.tables import flops
from analysis.tables.collect import collect
from analysis.tables.domains import DOMAINS, domains
from analysis.tables.measurements import READERS, outputs, tables_of
from analysis.tables.results import DLM, PARENT, unpack, unpack_families
from dlm.config.build import build
from dlm.conversion import flops as counting
from dlm.conversion.preparation import TRAIN_STREAM
from dlm.data import prose
from dlm.data.packing import collate
from dlm.data.tasks import FAMILIES, LONG
from dlm.model.flops import executed
from dlm.model.last_layer import LastLayer
from dlm.types import generator

pytestmark = pytest.mark.trains


@pytest.fixture
def sweeps(tmp_path):
    return write_sweep(tmp_path / "sweeps")


def test_the_tables_repeat_the_record(sweeps, tmp_path):
    run = fabricate(tmp_path, found(sweeps)["g"], 0.6)
    results = collect(sweeps, tmp_path, ["seed=0"])
    (made,) = results.runs.to_dict("records")
    assert made["run"] == run.id and made["train_flops"] == 1e12 and made["parameters"] == 1_115_520
    assert made["attention_name"] == "block" and made["masking_name"] == "position 0.25" and made["parent"] == "f00"
    parent, dlm = results.of("evaluations", SWEEP).to_dict("records")
    assert (parent["model"], dlm["model"]) == (PARENT, DLM) and dlm["point"] == "g" and dlm["label"] == "plain"
    assert dlm["accuracy"] == 0.6 and dlm["accuracy_n"] == N and dlm["accuracy_low"] == pytest.approx(0.55)
    assert dlm["maths"] == pytest.approx(0.6) and dlm["maths_n"] == 30 and dlm["tokens_per_second"] == 80
    assert dlm["bits_per_byte_high"] == pytest.approx(1 + 1.96 * 0.05, abs=1e-4)  # 0.1 of 2 nats is 5 %
    assert (unpack(dlm["correct"]) == correct(0.6, N)).all() and pd.isna(parent["correct"])
    asked = unpack_families(dlm["families"])
    assert set(asked) == set(FAMILIES) and {(tokens, len(i)) for tokens, i in asked.values()} == {(4.0, N // 9)}
    assert asked[list(FAMILIES)[1]][1][:2].tolist() == [1, 10] and pd.isna(parent["families"])
    curve = results.of("curves", SWEEP)
    assert list(curve["tokens"]) == [500, 1000] and list(curve["value"]) == [3, 2]
    drift = results.of("drift", SWEEP)
    assert len(drift) == 4 and set(drift["relative"]) == {0.1}


def test_points_without_a_finished_run_are_listed_with_their_state(sweeps, tmp_path):
    points = found(sweeps)
    fabricate(tmp_path, points["f"], 0.5).update(status="failed", error="Traceback\nValueError: too hot\n")
    results = collect(sweeps, tmp_path, ["seed=0,1"])
    states = {(p.point, p.seed): (p.state, p.error) for p in results.points.itertuples()}
    assert states["f", 0] == ("failed", "ValueError: too hot") and states["g", 1][0] == "not trained"
    assert results.runs.empty and len(results.missing(SWEEP)) == 4


def test_a_run_of_two_sweeps_is_one_run_and_a_point_of_each(sweeps, tmp_path):
    (sweeps / "again.yaml").write_text(TWO)
    fabricate(tmp_path, found(sweeps)["g"], 0.6)
    results = collect(sweeps, tmp_path, ["seed=0"])
    assert len(results.runs) == 1 and len(results.of("runs", (SWEEP, "again"))) == 2
    assert list(results.of("evaluations", "again")["model"]) == [PARENT, DLM]


def test_a_measurement_is_of_the_sweep_that_asks_for_it(sweeps, tmp_path):
    (sweeps / "plain.yaml").write_text(TWO[: TWO.index("evaluations")])
    point = found(sweeps)["g"]
    run = fabricate(tmp_path, point, 0.6)
    path = run.folder / point.evaluations[0].file
    path.parent.mkdir()
    path.write_text(json.dumps({"result": {"block_size": 2, "probability": [0.25, 0.75], "by_hidden": []}}))
    results = collect(sweeps, tmp_path, ["seed=0"])
    positions = results.of("positions", SWEEP)
    assert list(positions["value"]) == [0.25, 0.75] and set(positions["evaluation"]) == {"masked"}
    assert results.of("positions", "plain").empty and results.points["state"].eq(FINISHED).sum() == 2


def test_no_sweeps_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds no YAML"):
        collect(tmp_path, tmp_path)


def read(kind: str, result: dict, values: dict | None = None, **settings) -> dict:
    target = {"_target_": f"dlm.measurement.{kind}.Kind"}
    evaluation = Evaluation("one_token", values or {}, (), target | settings, "file")
    return tables_of(evaluation, {"result": result})


def test_every_kind_of_measurement_is_read():
    kinds = {path.stem for path in (ROOT / "conf" / "measurement").glob("*.yaml")}
    assert kinds == set(READERS)


def test_a_decoding_is_a_row_with_its_setting():
    families = {f: {"accuracy": 0.5, "n": 10} for f in FAMILIES}
    result = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": N, "tpf": 2.5, "nfe": 3.0, "families": families}
    result |= {"threshold": 0.7, "block_size": 16, "tokens_per_second": None, "items": {"correct": [True, False]}}
    decoder = {"_target_": "dlm.decoding.approximate.DualCache", "threshold": 0.9}
    values = {"decoding.threshold": 0.9, "measurement.block_size": 16}
    (row,) = read("decode", result, values, model="ar", decoder=decoder, tpf=2.8)["evaluations"]
    assert row["model"] == PARENT and row["setting"] == "threshold 0.9, block size 16" and row["target"] == 2.8
    assert row["decoder"] == "DualCache" and row["threshold"] == 0.7 and row["eval_block_size"] == 16
    assert row["code"] == 0.5 and unpack(row["correct"]).tolist() == [True, False]
    assert not {"tokens_per_row", "repetitive"} & set(row)  # measured before there were such
    more = {"tokens_per_row": 0.25, "repetitive": 0.1, "empty": 0.0, "endless": 0.2}
    (row,) = read("decode", result | more, values, model="ar", decoder=decoder)["evaluations"]
    assert {k: row[k] for k in more} == more and row["endless_n"] == N and row["empty_low"] == 0 < row["empty_high"]
    assert row["families"] is None  # of items without their families
    items = {"correct": [True, False], "family": ["add", "sort"], "answer_tokens": [2, 6]}
    (row,) = read("decode", result | {"items": items}, values, model="ar", decoder=decoder)["evaluations"]
    assert row["families"] == "add 1 2, sort 1 6"
    (plain,) = read("decode", result, model="dlm", decoder=decoder)["evaluations"]
    assert plain["setting"] == "one token" and plain["model"] == DLM


def test_a_trace_is_means_and_one_example_with_its_tokens():
    cells = [{"position": 5, "step": 1, "confidence": 0.9, "committed": True}]
    result = {"positions": [{"position": 0, "step": 0.5, "confidence": 0.9, "n": 7}]}
    result["example"] = {"prompt_tokens": 4, "tokens": ["a", "b"], "cells": cells}
    made = read("trace", result)
    assert made["positions"] == [{"model": DLM, "quantity": "step", "position": 0, "value": 0.5, "n": 7}]
    assert made["steps"] == [cells[0] | {"token": "b"}]
    full = {"positions": [{"position": 1, "step": 2.0, "n": 5}], "correlation": 0.5, "blocks": 4}
    made = read("trace", result | {"order": full})["positions"][1:]
    assert [(r["quantity"], r["position"], r["value"], r["n"]) for r in made] == [
        ("full_step", 1, 2.0, 5),
        ("order", 0, 0.5, 4),
    ]


def test_losses_by_position_are_the_masked_tokens_in_a_block_and_the_bound_in_a_sequence():
    one = {"position": [0, 1], "nelbo": [1.0, 2.0], "standard_error": [0.1, 0.1], "nll": [3.0, 4.0], "n": [9, 9]}
    rows = read(
        "position_loss",
        {
            "block_size": 2,
            "dlm": dict.fromkeys(("sequence", "block"), one),
            "ar": dict.fromkeys(("sequence", "block"), one),
        },
    )
    by = {(r["model"], r["quantity"], r["position"]): r["value"] for r in rows["positions"]}
    assert by[DLM, "loss", 1] == 4 and by[PARENT, "sequence_loss", 1] == 2 and len(by) == 8


def test_embeddings_are_scores_by_task():
    found = {"metric": "MRR", "score": 0.5, "low": 0.4, "high": 0.6, "n": 40}
    rows = read("embedding", {"dlm": {"retrieval": found}, "ar": {"retrieval": found | {"score": 0.3}}})["scores"]
    assert [(r["model"], r["task"], r["score"], r["score_n"]) for r in rows] == [
        (DLM, "retrieval (MRR)", 0.5, 40),
        (PARENT, "retrieval (MRR)", 0.3, 40),
    ]


def recipe_config(*overrides: str) -> dict:
    """The config of a run on a random model, two rows a batch."""
    small = ["model=tiny_random", "data.batch_size=2", "data.length=64", "data.val_rows=2", "data.mixture={tasks: 1.0}"]
    return OmegaConf.to_container(config(*small, "tokens=128", "block_size=8", *overrides), resolve=True)


def counted(made: dict, monkeypatch, batches: int = 1) -> tuple[float, dict[str, int]]:
    """The FLOPs of a step by `training_flops`, and those that the same batches execute, rollouts included."""
    monkeypatch.setattr(prose, "chapters", lambda split: ("And it came to pass. " * 20,))  # all of it is slow
    monkeypatch.setattr(prose, "ENCODED", {})  # which no other test shall read
    monkeypatch.setattr(counting, "BATCHES", batches)
    monkeypatch.setattr(counting, "SCHEDULED", batches)
    experiment = build(OmegaConf.create(made | {"tokens": 128 * batches}))
    conversion, data = experiment.conversion, experiment.data
    experiment.parent.model.train()
    # Counted are all rows of the last MLP, so that runs compare with those of the committed study.
    monkeypatch.setattr(LastLayer, "rows", lambda last, inputs: None)

    def steps():
        for i in range(batches):
            noise = generator(0, TRAIN_STREAM, 0, i)
            denoiser = conversion.preparation.scheduled((i + 0.5) / batches, noise)
            batch = collate([data.train_rows[2 * i], data.train_rows[2 * i + 1]])
            [prepared] = conversion.preparation.prepare(denoiser, batch, noise)
            conversion.objective(conversion.denoiser, prepared)[0].loss.backward()

    done = executed(steps)
    return flops.training_flops(made, steps=batches), done


# What an auxiliary loss or a rollout cannot do without, or is more to the point with.
BESIDE = {
    "align": ["attention=bidir", "token_shift=true"],
    "ar": ["attention=block_token_causal"],
    "consistency": ["masking.views=2", "masking.complementary=false"],
    "prediction": ["rollout.probability=1.0", "loss=mean", "masking=uniform", "masking.score=all"],
    "trajectory": ["auxiliary=distill", "loss.scale=0", "rollout.decoder.threshold=0.01"],
}
PLAIN = {
    "bidir": ["attention=bidir", "token_shift=true"],
    "block": ["attention=block", "token_shift=true"],
    "two views": ["masking=uniform", "masking.views=2"],
}


OF_A_STEP = [
    *PLAIN.values(),
    *([f"{group}={n}", *BESIDE.get(n, [])] for group in ("auxiliary", "rollout") for n in options(group)),
]
EVERYDAY = ("block", "confidence")  # a forward, and one with a head


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(o, marks=() if o[0].partition("=")[2] in EVERYDAY else pytest.mark.grid, id=" ".join(o))
        for o in OF_A_STEP
    ],
)
def test_training_flops_are_those_of_a_step_as_it_is_executed(overrides, monkeypatch):
    """The linear maps to the digit; of attention, which a CPU computes for all pairs, the visible part."""
    made = recipe_config("masking=uniform", *overrides)
    found, done = counted(made, monkeypatch)
    assert done["linear"] < found <= done["linear"] + done["attention"]
    assert flops.training_flops(made, steps=6) == 6 * found


@pytest.mark.slow
def test_what_an_auxiliary_loss_adds_is_exactly_its_linear_maps(monkeypatch):
    """Attention cancels where the student and the teacher read what they read without it: the difference of two counts
    is the difference of what is executed, but for the teacher's attention."""
    plain, executed_plain = counted(recipe_config("masking=uniform"), monkeypatch)
    for name in ("distill", "confidence"):
        found, done = counted(recipe_config("masking=uniform", f"auxiliary={name}"), monkeypatch)
        more, attention = done["linear"] - executed_plain["linear"], done["attention"] - executed_plain["attention"]
        assert more <= found - plain <= more + attention and (more > 0) == (name == "distill")


def test_a_rollout_that_is_drawn_for_half_of_the_batches_costs_half(monkeypatch):
    overrides = ["masking=uniform", "rollout=prediction", "loss=mean", "masking.score=all"]
    at = {p: counted(recipe_config(*overrides, f"rollout.probability={p}"), monkeypatch)[0] for p in (0.0, 0.5, 1.0)}
    assert at[0.0] < at[0.5] == pytest.approx((at[0.0] + at[1.0]) / 2, rel=1e-12)


def test_a_block_schedule_is_counted_over_the_whole_of_training(monkeypatch):
    """Blocks of 1 and of 64 cost differently; half of training each is the mean of both."""
    base = ["masking=uniform", "attention=block_noisy", "data.fill=scored"]  # all blocks of 64 are read with any size
    small, large = (counted(recipe_config(*base, f"block_size={s}"), monkeypatch, 2) for s in (1, 64))
    schedule = "block_schedule={_target_: dlm.block_schedule.stages.Stages, sizes: [1, 64]}"
    both, done = counted(recipe_config(*base, "+" + schedule, "block_size=64"), monkeypatch, 2)
    assert done["linear"] < both <= done["linear"] + done["attention"]
    assert min(small[0], large[0]) < both < max(small[0], large[0])


@pytest.mark.parametrize(
    ("asked", "named"), [(FAMILIES, ["maths", "code", "symbols"]), (LONG, ["sequential", "parallel"])]
)
def test_the_domains_are_those_of_the_tasks_that_were_asked_and_each_task_is_of_one(asked, named):
    found = domains({family: {"accuracy": 0.5, "n": 10} for family in asked})
    assert [name for name in DOMAINS if name in found] == named and {found[name] for name in named} == {0.5}
    assert sorted(family for name in named for family in DOMAINS[name]) == sorted(asked)


def test_the_share_of_right_steps_is_kept_where_it_was_measured():
    assert outputs({"right_steps": 0.75, "n": 4}) == {"right_steps": 0.75} and outputs({"n": 4}) == {}
