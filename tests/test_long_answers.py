"""Tasks with long answers: their lengths, their splits, the right answers, and who is asked them."""

import random
import re
from itertools import accumulate, pairwise
from statistics import mean

import pytest
from common import config
from omegaconf import OmegaConf
from small_runs import small

from dlm.config.build import ar_denoiser, make
from dlm.config.values import evaluation_of
from dlm.conversion.module import Conversion
from dlm.data import tasks
from dlm.data.example import Example, check, grade
from dlm.data.packing import TaskSource
from dlm.decoding.fixed import Fixed
from dlm.evaluation import suite
from dlm.evaluation.generation import prompt_ids, run_tasks
from dlm.evaluation.items import added_version, items_version
from dlm.measurement.base import Subject
from dlm.model.parent import load_parent
from dlm.train import train


@pytest.fixture(params=tasks.LONG)
def examples(request):
    rng = random.Random(1)
    return [tasks.sample(request.param, "train", rng) for _ in range(200)]


def num_tokens(tokenizer, texts) -> list[int]:
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def test_answers_have_40_to_128_tokens_with_eos_and_fit_a_row(examples, tokenizer):
    answers = [n + 1 for n in num_tokens(tokenizer, [e.answer for e in examples])]
    rows = [a + b for a, b in zip(answers, map(len, prompt_ids(tokenizer, examples)), strict=True)]
    assert min(answers) >= 40 and max(answers) <= config("evaluation=long").evaluation.max_new_tokens
    assert max(rows) <= config("data=long").data.length


def test_answers_have_48_tokens_on_average(tokenizer):
    assert mean(num_tokens(tokenizer, [e.answer for e in tasks.evaluation_set("test", 20, families=tasks.LONG)])) >= 48


@pytest.mark.parametrize("family", tasks.LONG)
def test_splits_share_no_prompt_and_no_answer_has_an_empty_step(family):
    rng = random.Random(0)
    drawn = {split: [tasks.sample(family, split, rng) for _ in range(100)] for split in ("train", "val", "test")}
    train, val, test = ({e.prompt for e in split} for split in drawn.values())
    assert not train & val and not train & test and not val & test
    assert all(all(e.answer.split(";")) for split in drawn.values() for e in split)


def test_families_of_short_and_of_long_answers_have_names_of_their_own():
    assert not tasks.FAMILIES.keys() & tasks.LONG.keys()


def terms_of(prompt: str) -> list[str]:
    """The terms of a prompt without their labels."""
    return re.findall(r"[A-Z]([^A-Z]+)", prompt[prompt.index(":") :].removesuffix("="))


def unlabelled(example: Example) -> list[str]:
    """The steps of an answer whose labels are in order, without them."""
    steps = example.answer.split(";")
    assert [step[0] for step in steps] == [chr(ord("A") + i) for i in range(len(steps))]
    return [step[1:] for step in steps]


def by_other_means(e: Example) -> bool:
    """Whether an answer is right, computed from the prompt in another way than the family's."""
    match e.family:
        case "totals":
            return [int(t) for t in unlabelled(e)] == [t % 100 for t in accumulate(map(int, terms_of(e.prompt)))]
        case "columns":
            a, b = (int("".join(pair[i] for pair in reversed(terms_of(e.prompt)))) for i in (0, 1))
            steps = unlabelled(e)
            return int(steps[-1][0] + "".join(step[1] for step in reversed(steps))) == a + b
        case "insertion":
            letters, steps = e.prompt[7:-1], e.answer.split(";")
            grown = [
                sorted(b) == sorted(a + letter) for (a, b), letter in zip(pairwise(steps), letters[1:], strict=True)
            ]
            return steps[0] == letters[0] and all(grown) and all(list(s) == sorted(s) for s in steps)
        case "recurrence":
            results = [int(step[-1]) for step in unlabelled(e)]
            starts = [int(e.prompt[2]), *results[:-1]]
            return unlabelled(e) == [
                f"{a}+{x}={str(x + int(a))[-1]}" for x, a in zip(starts, terms_of(e.prompt), strict=True)
            ]
        case "ledger":
            changes = [int(sign + digit) for digit, sign in terms_of(e.prompt)]
            amounts = accumulate(changes, initial=int(e.prompt[7]))
            verbs = ["more makes" if change > 0 else "less leaves" for change in changes]
            return unlabelled(e) == [
                f"{abs(change)} {verb} {amount}"
                for change, verb, amount in zip(changes, verbs, list(amounts)[1:], strict=True)
            ]
        case "shift":
            return all((ord(b) - ord(a)) % 26 == 3 for a, b in zip(terms_of(e.prompt), unlabelled(e), strict=True))
        case "replace":
            return unlabelled(e) == list("".join(terms_of(e.prompt)).replace(e.prompt[8], e.prompt[13]))
        case "lookup":
            table, asked = e.prompt[7:-1].split("/")
            return e.answer == ";".join(key + table[table.index(key) + 1] for key in asked)
        case "words":
            return all(
                step.split()[3] == ("even", "odd")[int(t) % 2] and step.split()[1] == WORDS[int(t)]
                for t, step in zip(terms_of(e.prompt), unlabelled(e), strict=True)
            )
        case "transpose":
            rows, columns = e.prompt[10:-1].split(";"), e.answer.split(";")
            return all(columns[i][j] == rows[j][i] for i in range(6) for j in range(6))
    return False


WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def test_answers_are_right(examples):
    assert all(map(by_other_means, examples))


def test_an_answer_is_graded_step_by_step():
    example = Example("totals", "totals:A1B2C3D4=", "A01;B03;C06;D10")
    outputs = {
        " A01;B03;C06;D10\n": (1.0, None),
        "A01;B04;C06;D10": (0.75, 1),
        "A01;B03": (0.5, 2),
        "A01;B03;C06;D10;E10": (1.0, 4),
        "": (0.0, 0),
    }
    for output, expected in outputs.items():
        found = grade(example, output)
        assert (found.right, found.first_wrong) == expected
        assert check(example, output) == (found.first_wrong is None)


@pytest.mark.trains
def test_their_parent_answers_them():
    parent, examples = load_parent("pkg://dlm/assets/long"), tasks.evaluation_set("test", 1, families=tasks.LONG)
    limit = config("evaluation=long").evaluation.max_new_tokens
    answered = run_tasks(ar_denoiser(parent), parent.tokenizer, examples, Fixed(1), limit, len(examples))
    assert answered["correct"].mean() >= 0.9 and answered["right_steps"].mean() >= 0.9


def test_both_kinds_of_families_can_be_trained_together(tokenizer):
    data = make(config("data=long", "data.families=[add,totals]").data)
    assert data.families == ["add", "totals"]
    document = TaskSource("train", tokenizer, data.families).draw(random.Random(0), data.length)
    assert document.ids[-1] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match=r"data.families \['juggle'\] are unknown: choose from .*add.*totals"):
        make(config("data=long", "data.families=[juggle]").data)


def test_the_data_of_a_run_decides_what_it_is_asked():
    short, long = (make(config(f"data={name}").data) for name in ("embedded", "long"))
    assert short.asked is None and long.asked == tuple(tasks.LONG)
    of_long = evaluation_of(config("evaluation=long").evaluation, config("data=long").data)
    assert of_long.families == long.asked and of_long.recorded["families"] == list(long.asked)
    assert {e.family for e in tasks.evaluation_set("test", 1, families=long.asked)} == tasks.LONG.keys()


def test_a_run_on_long_answers_is_asked_and_counts_as_evaluated_by_them_only(finished_run, monkeypatch):
    cfg, of_short = config("evaluation=long").evaluation, finished_run.config
    evaluations = {
        families: {
            "settings": OmegaConf.to_container(cfg, resolve=True) | ({"families": list(families)} if families else {}),
            "items": items_version() + added_version(families),
        }
        for families in (None, tuple(tasks.LONG))
    }
    of_long = OmegaConf.merge(of_short, {"data": config("data=long").data})
    for run_config, asked in ((of_short, None), (of_long, tuple(tasks.LONG))):
        monkeypatch.setattr(type(finished_run), "config", run_config)
        assert Subject(finished_run).asked == asked
        for families, evaluation in evaluations.items():
            finished_run.update(evaluation=evaluation)
            assert suite.is_evaluated(finished_run, evaluation_of(cfg, run_config.data)) is (families == asked)


def test_items_of_long_answers_have_a_version_of_their_own():
    versions = {items_version() + added_version(f) for f in (None, tuple(tasks.LONG), tuple(tasks.LONG)[1:])}
    assert len(versions) == 3 and items_version() in versions


@pytest.mark.trains
def test_an_evaluation_that_cuts_every_answer_is_refused_before_training(runs_dir, monkeypatch):
    monkeypatch.setattr(Conversion, "training_step", lambda *_: pytest.fail("compute was spent"))
    with pytest.raises(ValueError, match="max_new_tokens 32 cuts every answer.*set evaluation=long"):
        train(small(runs_dir, "data=long", "data.length=256", "tokens=4096", "evaluation=full"))
