"""What is asked belongs to what was found: nothing that was measured with other items is taken for an answer."""

import json
import random
from types import SimpleNamespace

import pandas as pd
import pytest
from common import config, one_in
from omegaconf import OmegaConf

from dlm.config.values import evaluation_of
from dlm.data import prose, tasks
from dlm.evaluation import cloze, items, suite
from dlm.evaluation.items import items_version
from dlm.measurement import store
from dlm.measurement.base import Subject
from dlm.runs.run import measurement_file
from dlm.runs.storage import read_json, write_json


def chapters(split: str) -> tuple[str, ...]:
    """The real ones, but for one letter of the last training chapter."""
    found = prose.chapters(split)
    return (*found[:-1], found[-1] + "!") if split == "train" else found


def other_sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randrange(100), rng.randrange(100)
    return f"{a}+{b}=", str(a + b + 1)


CHANGES = {
    "a task": (tasks, "FAMILIES", tasks.FAMILIES | {"add": other_sum}),
    "a family more": (tasks, "FAMILIES", tasks.FAMILIES | {"more": other_sum}),
    "the prose": (items, "prose", SimpleNamespace(chapters=chapters)),
    "the cloze items": (cloze, "OPTION_TOKENS", 9),
    "the rows": (items, "windows", lambda *a, windows=items.windows: (windows(*a)[0][1:], 1)),
    "how it is judged": (items, "EVALUATION_VERSION", items.EVALUATION_VERSION + 1),
}


@pytest.mark.parametrize("change", one_in(3, CHANGES))
def test_the_version_changes_with_whatever_is_asked_and_is_otherwise_the_same(change, monkeypatch):
    fresh = items_version.__wrapped__  # not the one that another test has computed and kept
    before = fresh()
    assert fresh() == before
    monkeypatch.setattr(*CHANGES[change])
    assert fresh() != before


def settings(draws: int) -> dict:
    cfg = config("run=none", "measurement=masked", f"measurement.draws={draws}", name="measure")
    return OmegaConf.to_container(cfg.measurement, resolve=True)


@pytest.mark.parametrize("before", ["other items", None])
def test_a_measurement_of_other_items_is_made_again_once_and_keeps_its_name(before, finished_run, monkeypatch):
    subject, wanted = Subject(finished_run), settings(10)
    path = finished_run.folder / measurement_file(wanted)
    first = store.measure(subject, wanted)
    assert first["items"] == items_version() and json.loads(path.read_text())["items"] == items_version()
    path.write_text(
        json.dumps({k: v for k, v in first.items() if k != "items"} | ({"items": before} if before else {}))
    )
    made = store.make
    count = []
    monkeypatch.setattr(store, "make", lambda node: count.append(node) or made(node))
    assert [store.measure(subject, wanted)["items"] for _ in range(2)] == [items_version()] * 2
    assert len(count) == 1 and list(path.parent.iterdir()) == [path]


@pytest.fixture
def measured(monkeypatch):
    """What is measured instead of models: the dLM's and the parent's patterns, in the order in which they came."""
    seen = []

    def measure_model(denoiser, parent, settings, decoders):
        seen.append(type(denoiser.pattern).__name__)
        frame = pd.DataFrame({"setting": [suite.ONE_TOKEN], "step": [[]], "confidence": [[]]})
        return {"likelihood": len(seen)}, frame

    for name, fake in (("calibrate", {}), ("measure_throughput", {}), ("on_grid", None), ("trace_summary", [])):
        monkeypatch.setattr(suite, name, lambda *_, fake=fake: fake)
    monkeypatch.setattr(suite, "measure_model", measure_model)
    return seen


@pytest.mark.trains
def test_what_was_measured_of_a_parent_is_used_again_for_the_same_items_only(finished_run, measured, monkeypatch):
    settings = evaluation_of(config().evaluation, finished_run.config.data)
    first = suite.evaluate_run(finished_run, settings)
    assert measured == ["AR", "Block"] and first["items"] == items_version() and "items" not in first["parent"]
    assert suite.evaluate_run(finished_run, settings)["parent"] == first["parent"] and measured[2:] == ["Block"]
    (cache,) = (finished_run.folder.parent / ".parents").iterdir()
    old = read_json(cache)
    old.pop("items")
    write_json(cache, old)  # as an earlier version has written it
    for expected in (["AR", "Block"], ["Block"]):
        measured.clear()
        suite.evaluate_run(finished_run, settings)
        assert measured == expected
    monkeypatch.setattr(suite, "items_version", lambda: "others")
    assert suite.evaluate_run(finished_run, settings)["items"] == "others" and measured[1:] == ["AR", "Block"]
    assert list(cache.parent.iterdir()) == [cache]


def test_a_finished_run_counts_as_evaluated_unless_it_answered_other_items(finished_run):
    cfg, data = config().evaluation, finished_run.config.data
    found = {"settings": OmegaConf.to_container(cfg, resolve=True)}
    for items_of_record, counts in (({}, True), ({"items": items_version()}, True), ({"items": "others"}, False)):
        finished_run.update(evaluation=found | items_of_record)
        assert suite.is_evaluated(finished_run, evaluation_of(cfg, data)) is counts
    finished_run.update(evaluation=found)
    assert not suite.is_evaluated(finished_run, evaluation_of(config("evaluation.cloze_items=7").evaluation, data))
    assert suite.is_evaluated(finished_run, evaluation_of(config("evaluation=none").evaluation, data))


def test_an_evaluation_keeps_what_it_is_given_and_is_refused_by_the_name_of_what_it_lacks(finished_run):
    cfg, data = config("+evaluation.benchmarks=[gsm8k]").evaluation, finished_run.config.data
    assert evaluation_of(cfg, data).recorded == OmegaConf.to_container(cfg, resolve=True)
    without = OmegaConf.masked_copy(cfg, [name for name in cfg if name != "cloze_items"])
    with pytest.raises(ValueError, match="^evaluation.cloze_items is missing: set evaluation.cloze_items=VALUE"):
        evaluation_of(without, data)
