"""A budget in another unit is spent to one optimizer step, and a record says what was spent in every unit."""

import pytest
import torch
from common import config, everyday
from corpora import text_file
from omegaconf import OmegaConf

from dlm.config.budget import UNITS, count, endless
from dlm.config.build import build
from dlm.runs.identity import run_id

pytestmark = pytest.mark.trains  # or takes half a second

SMALL = ("data.length=64", "data.batch_size=4", "data.val_rows=1", "block_size=8")


def experiment(*overrides):
    return build(config(*SMALL, *overrides))


@pytest.mark.parametrize("unit", ["examples", "answer_tokens"])
@pytest.mark.parametrize(
    "more", everyday([["trainer.accumulate=2"], [], ["trainer.devices=2"], ["attention=bidir"]], 2), ids=str
)
def test_the_last_step_is_the_one_that_reaches_the_budget(unit, more):
    made, amount = experiment(f"budget.unit={unit}", "budget.amount=300", *more), 300
    rows, step = made.data.train_rows, made.budget.rows
    assert step == 4 * (1 if more in ([], ["attention=bidir"]) else 2) and len(rows) == made.num_steps * step
    assert count(rows, range(len(rows)))[unit] >= amount > count(rows, range(len(rows) - step))[unit]


def test_patterns_with_one_budget_of_examples_see_as_many_to_a_step():
    seen = []
    for pattern in ("block", "bidir", "ar"):
        made = experiment("budget.unit=examples", "budget.amount=400", f"attention={pattern}", "token_shift=true")
        rows = made.data.train_rows
        seen.append(count(rows, range(len(rows)))["examples"])
    assert all(400 <= n < 400 + 30 for n in seen)


def test_counts_are_of_answers_without_prompt_fill_and_prose():
    made = experiment("tokens=1024", "data.fill=unscored")
    rows = made.data.train_rows
    found = count(rows, range(16))
    examples = tokens = 0
    for n in range(16):
        row = rows[n]
        for document in row.document[row.document >= 0].unique():
            inside = row.document == document
            if not row.maskable[inside].all():  # it has a prompt
                examples += 1
                tokens += int(row.targets[inside].sum())
    assert found == {"examples": examples, "answer_tokens": tokens} and examples
    assert count(experiment("tokens=1024", "data.fill=scored").data.train_rows, range(16)) == found


def test_of_text_without_answers_every_document_and_token_counts(tmp_path):
    made = experiment("data=text", f"data.path={text_file(tmp_path)}", "budget.unit=answer_tokens", "budget.amount=600")
    row = made.data.train_rows[0]
    found = count(made.data.train_rows, range(1))
    assert found == {"examples": int(row.document.max()) + 1, "answer_tokens": int(row.targets.sum())}


def test_a_long_run_is_recorded_without_drawing_all_its_rows(monkeypatch):
    made = experiment("tokens=8192")
    whole = made.budget.spent(made.data, made.conversion, made.num_steps)
    monkeypatch.setattr("dlm.config.budget.COUNTED", 64)
    drawn = []
    monkeypatch.setattr("dlm.config.budget.count", lambda rows, indices: drawn.append(indices) or count(rows, indices))
    estimate = made.budget.spent(made.data, made.conversion, made.num_steps)
    assert drawn == [range(64)] and estimate["tokens"] == whole["tokens"]
    assert estimate == pytest.approx(whole, rel=0.2)


def test_a_budget_of_flops_is_a_number_of_mean_steps():
    whole = experiment("tokens=1024")
    step = whole.budget.spent(whole.data, whole.conversion, 1)["flops"]
    made = experiment("budget.unit=flops", f"budget.amount={2.5 * step}")
    assert made.num_steps == 3
    assert made.budget.spent(made.data, made.conversion, 3)["flops"] == pytest.approx(3 * step)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget.unit=epochs"], r"budget\.unit 'epochs' is unknown: choose one of tokens, examples"),
        (["budget.unit=examples"], r"budget\.amount None must be a number of examples above 0"),
        (["budget.unit=examples", "budget.amount=0"], r"budget\.amount 0 must be a number of examples above 0"),
        (["budget.amount=9000"], r"is of no use with budget\.unit=tokens: set tokens=9000"),
        (["budget.unit=examples", "budget.amount=2"], r"budget\.amount 2 is less than one optimizer step of \d+ exam"),
        (["budget.unit=flops", "budget.amount=10"], r"budget\.amount 10 is less than one optimizer step of .* flops"),
        (["tokens=100"], r"tokens 100 is less than one optimizer step of 256 tokens"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        experiment(*overrides)


def test_examples_that_never_come_are_not_waited_for(monkeypatch):
    monkeypatch.setattr("dlm.config.budget.COUNTED", 40)
    with pytest.raises(
        ValueError, match="budget.unit examples: the first 4. rows hold none; raise the weight of tasks"
    ):
        experiment("budget.unit=examples", "budget.amount=100", "data.mixture={tasks: 1e-9, prose: 1.0}")


def test_a_record_says_what_was_spent_in_every_unit(trained):
    budget = trained.record["budget"]
    assert tuple(budget) == UNITS and budget["tokens"] == trained.record["tokens"] == 1024
    rows = build(trained.config).data.train_rows
    assert count(rows, range(16)) == {unit: budget[unit] for unit in ("examples", "answer_tokens")}
    assert budget["flops"] > 0


def test_rows_beyond_the_end_are_those_that_a_longer_run_would_have():
    short, long = (experiment(f"tokens={n}").data.train_rows for n in (256, 1024))
    assert torch.equal(endless(short)[9].x0, long[9].x0)


def test_another_unit_is_another_run():
    def identity(*overrides):
        return run_id(OmegaConf.to_container(config(*overrides), resolve=True))

    plain = identity()
    assert identity("budget.unit=tokens") == plain != identity("budget.unit=examples", "budget.amount=2000000")
