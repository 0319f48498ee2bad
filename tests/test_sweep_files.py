"""What a sweep's file says: its points, their runs and their evaluations, at every scale."""

import re

import pytest
from common import ROOT
from study_sweeps import ONE, by_name

from analysis.plan.sweep import load_sweep

pytestmark = pytest.mark.trains


TABLE1 = ROOT / "sweeps" / "table1_attention.yaml"


SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


PAPER_SCALE = ["scale=paper", "model=qwen2_5_1_5b", "trainer=gpu", "data=text", "data.path=corpus.jsonl"]


# The smoke study composes its own.
@pytest.mark.slow  # `make smoke` composes every sweep, too
@pytest.mark.parametrize("overrides", [PAPER_SCALE, []])
def test_every_sweep_composes_at_every_scale_and_its_points_are_distinct_runs(overrides):
    parents = set()
    for path in SWEEPS:
        found = load_sweep(path, overrides)
        assert len({p.run for p in found.points}) == len(found.points) >= 1
        assert all(re.fullmatch(r"[0-9a-p][0-9a-f]{11}", p.run) for p in found.points)
        assert all(p.config["tokens"] >= 1 for p in found.points)
        parents |= {p.config["model"].get("path") for p in found.points}
    assert (parents >= {"Qwen/Qwen2.5-1.5B", "Qwen/Qwen3-4B-Base", "Qwen/Qwen3-8B-Base"}) == bool(overrides)


def test_a_point_may_choose_another_option_than_the_scale_or_the_sweep(tmp_path):
    text = "title: t\nshared: [attention=block, optimizer=adamw]\npoints: {a: {label: A, overrides: [attention=ar]}}"
    (point,) = load_sweep_of(tmp_path, text).values()
    assert point.config["attention"]["_target_"].endswith("AR") and "optimizer=muon" not in point.overrides


def test_a_setting_that_several_artefacts_share_is_one_run():
    names = ("table1_attention", "g"), ("figure3_block_size", "block_size=8"), ("figure6_trace", "base")
    names += (
        ("figure8_tokens", "times=1"),
        ("table3_family", "parent=middle"),
        ("shift_by_setting", "none, setting=base"),
    )
    names += ("table5_ladder", "no_shift"), ("table7_lr", "lr=0.001"), ("figure12_position_loss", "base")
    names += ("contested_factorial", "attention=block, token_shift=false, loss=nelbo"), ("table4_embedding", "base")
    runs = {by_name(load_sweep(ROOT / "sweeps" / f"{s}.yaml", ["seed=1"]))[point].run for s, point in names}
    assert len(runs) == 1


def test_the_doubled_row_has_twice_the_budget_whatever_the_budget_is():
    for overrides in ([], ["tokens=4096"], ["tokens=1e6"]):
        budget = {p.name: p.budget for p in load_sweep(TABLE1, overrides).points}
        (unit, amount) = budget["g"]
        assert unit == ("tokens" if overrides else "examples") and budget["e"] == (unit, 2 * amount)
        assert {budget[n] for n in "bcdfghi"} == {(unit, amount)}


def test_a_scale_can_leave_out_points_and_their_evaluations_but_name_none_that_is_not_there(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(ONE + 'only: ["b, block_size=4", "a, block_size=2"]')
    every, (a, b) = load_sweep_of(tmp_path, ONE), load_sweep(path, ["seed=0"]).points
    assert [a.name, b.name] == ["a, block_size=2", "b, block_size=4"]
    assert (a.run, b.run) == (every[a.name].run, every[b.name].run)
    assert [e.name for e in a.evaluations] == ["order", "speed", "speed"]
    path.write_text(ONE + "only: null")
    assert len(load_sweep(path, ["seed=0"]).points) == 4
    path.write_text(ONE + "only: [c]")
    with pytest.raises(ValueError, match="only: c is none of its points"):
        load_sweep(path, ["seed=0"])


def load_sweep_of(folder, text):
    (folder / "every.yaml").write_text(text)
    return by_name(load_sweep(folder / "every.yaml", ["seed=0"]))


@pytest.mark.slow
def test_recipes_that_a_second_stage_continues_are_there_at_every_scale():
    for scale in ("embedded", "quick", "smoke", "paper"):
        options = PAPER_SCALE if scale == "paper" else [f"scale={scale}"]
        stages = load_sweep(ROOT / "sweeps" / "recipes_second_stage.yaml", options).points
        there = {p.run for p in load_sweep(ROOT / "sweeps" / "recipes.yaml", options).points}
        assert {need.run for stage in stages for need in stage.needs} <= there, scale


def test_the_points_are_the_papers_rows(table1):
    chosen = {
        p.name: (p.config["attention"]["_target_"].split(".")[-1], p.config["token_shift"]) for p in table1.points
    }
    paper = {"b": ("Bidir", True), "c": ("Bidir", False), "d": ("BlockNoisy", True), "e": ("BlockNoisy", True)}
    rates = ("h_low", "h_high", "i_low", "i_high")  # of LoRA, whose learning rate is its own
    paper |= {"f": ("Block", True)} | dict.fromkeys((*"ghi", *rates), ("Block", False))
    assert chosen == paper
    assert {p.name: p.config["trainable"]["rank"] for p in table1.points if p.name in "hi"} == {"h": 16, "i": 64}
    assert {p.config["masking"]["_target_"] for p in table1.points} == {"dlm.masking.uniform.Uniform"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokens=0"], "tokens=0 must be a whole number of at least 1"),
        (["tokens=many"], "tokens=many must be a whole number"),
        (["lrr=3"], r"point b \(.*lrr=3\) cannot be composed: .*lrr"),
        (["seed=1,1"], "points b and b .seeds 1 and 1. are the same run"),
        (["token_shift=true"], "points b and c .* are the same run .* with token_shift=true"),
    ],
)
def test_overrides_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_sweep(TABLE1, overrides)


def test_seeds_replace_the_sweeps_own_and_every_point_has_each():
    found = load_sweep(TABLE1, ["seed=1,2"])
    assert [(p.name, p.seed) for p in found.points[:4]] == [("b", 1), ("b", 2), ("c", 1), ("c", 2)]
    assert all(p.config["seed"] == p.seed for p in found.points)


def test_a_missing_sweep_is_named_beside_those_that_exist():
    with pytest.raises(ValueError, match=r"nowhere.yaml' does not exist: choose one of .*table1_attention.yaml"):
        load_sweep(ROOT / "sweeps" / "nowhere.yaml")


def test_points_are_multiplied_by_the_grid_and_evaluated_as_they_ask(linked_sweeps):
    found = by_name(load_sweep(linked_sweeps / "one.yaml", ["seed=3"]))
    assert list(found) == ["a, block_size=2", "a, block_size=4", "b, block_size=2", "b, block_size=4"]
    point = found["b, block_size=4"]
    assert point.config["block_size"] == 4 and point.config["loss"]["_target_"].endswith("Mean")
    assert point.values == {"block_size": 4} and point.seed == 3 and point.label == "B, block size 4"
    assert [(e.name, e.values) for e in point.evaluations] == [
        ("speed", {"decoding.threshold": 0.5}),
        ("speed", {"decoding.threshold": 0.9}),
    ]
    assert [e.settings["decoder"]["threshold"] for e in point.evaluations] == [0.5, 0.9]
    assert [e.name for e in found["a, block_size=2"].evaluations] == ["order", "speed", "speed"]


def test_a_reference_is_the_run_or_the_file_of_the_point_with_the_same_seed(linked_sweeps):
    one = {(p.name, p.seed): p for p in load_sweep(linked_sweeps / "one.yaml", ["seed=0,1"]).points}
    two = {(p.name, p.seed): p for p in load_sweep(linked_sweeps / "two.yaml", ["seed=0,1"]).points}
    for seed in (0, 1):
        source, learned, child = one["a, block_size=2", seed], two["learned", seed], two["child", seed]
        assert learned.config["masking"]["trace"] == f"{source.run}/{source.evaluations[0].file}"
        assert [(n.run, [e.name for e in n.evaluations]) for n in learned.needs] == [(source.run, ["order"])]
        (parent,) = child.needs
        assert parent.seed == 7 and child.config["model"]["run"] == parent.run and not parent.evaluations
        assert child.budget[1] * 2 == learned.budget[1]
    assert two["child", 0].needs[0].run == two["child", 1].needs[0].run


def test_moving_the_runs_does_not_make_other_runs_of_them(linked_sweeps):
    here, there = (load_sweep(linked_sweeps / "two.yaml", [f"runs_dir={d}"]) for d in ("runs", "/elsewhere"))
    assert [p.run for p in here.points] == [p.run for p in there.points]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: t", "lacks a title, or points or a grid"),
        ("points: {a: {label: A}}", "lacks a title"),
        ("title: t\npoint: {}\npoints: {a: {label: A}}", "has point: choose of base, budget, evaluations"),
        ("title: t\ngrid: {lr: '${study.lr}'}", "does not fit the scale: .*lr"),
        ("title: t\npoints: {a: {label: A, overrides: [model=run, 'model.run=@one:z']}}", "one has no point 'z'"),
        (
            "title: t\npoints: {a: {label: A, overrides: [masking=learned, 'masking.trace=@one:b, block_size=2/o']}}",
            "has no evaluation 'o'",
        ),
        (
            "title: t\npoints: {a: {label: A}}\nevaluations: {e: {points: [z], overrides: [measurement=masked]}}",
            "evaluation e: z is none of its points a",
        ),
        (
            "title: t\npoints: {a: {label: A}}\nevaluations: {e: {overrides: [measurement=nothing]}}",
            "evaluation e .*measurement=nothing. cannot be composed",
        ),
    ],
)
def test_a_sweep_that_does_not_fit_is_named_with_the_reason(text, message, linked_sweeps):
    path = linked_sweeps / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_sweep(path)
    path.unlink()
