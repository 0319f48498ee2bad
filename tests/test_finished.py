"""The door to a finished run: nobody takes a model that is not what was written, or that is not there."""

import re
from types import SimpleNamespace

import pytest
from common import ROOT, config

from dlm.attention.ar import AR
from dlm.auxiliary.teacher import Teacher
from dlm.config.build import make
from dlm.config.finished import FinishedRun
from dlm.config.values import evaluation_of
from dlm.evaluation.suite import evaluate_again
from dlm.export import export
from dlm.exported.embedded import install
from dlm.generate import speakers
from dlm.measurement.base import Subject
from dlm.model.parent import Parent, load_parent, load_run
from dlm.policy import learn
from dlm.runs.run import Run

# Everything that takes the model of a finished run: a function of the run and of an empty folder.
DOORS = {
    "evaluate": lambda run, to: evaluate_again(run, evaluation_of(config().evaluation, run.config.data)),
    "generate": lambda run, to: speakers(SimpleNamespace(parent=False, get=lambda _: None), FinishedRun(run)),
    "measure": lambda run, to: Subject(run),
    "policy": lambda run, to: learn(run, {"items_per_family": 1, "max_new_tokens": 4, "held_out": 0.5, "seed": 0}),
    "export": lambda run, to: export(run, to / "exported"),
    "embedded": lambda run, to: install(run, to / "installed"),
    "finished": lambda run, to: FinishedRun(run),
    "load_run": lambda run, to: load_run(run.id, str(run.folder.parent), check=False),
    "model=run": lambda run, to: make(
        config("model=run", f"model.run={run.id}", f"model.runs_dir={run.folder.parent}").model, check=False
    ),
    "teacher": lambda run, to: Teacher(AR(), True, run.id, str(run.folder.parent)).bind(Parent(None, None, 0, {}, "")),
}


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("door", DOORS)
def test_a_flipped_byte_of_any_file_of_a_model_is_noticed_whoever_asks_for_it(door, file, finished_run, tmp_path):
    run = finished_run
    path = run.model_folder / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"run {run.id} is damaged: .*{file} is not what was written"):
        DOORS[door](run, tmp_path)
    assert not (tmp_path / "exported").exists() and not (tmp_path / "installed").exists()


@pytest.mark.parametrize("door", DOORS)
def test_a_run_without_a_model_is_named_with_what_to_do(door, tmp_path):
    run = Run.create(config(f"runs_dir={tmp_path}"), {})
    run.update(status="interrupted")
    with pytest.raises(ValueError, match=f"run {run.id} is interrupted and has no model: finish it with the command"):
        DOORS[door](run, tmp_path)


@pytest.mark.trains
def test_what_is_asked_of_a_finished_run_is_loaded_once_and_only_then(finished_run, monkeypatch):
    loaded = []
    monkeypatch.setattr("dlm.config.finished.load_parent", lambda *a, **k: loaded.append(a) or load_parent(*a, **k))
    finished = FinishedRun(finished_run)
    assert loaded == [] and finished.dlm.model is finished.converted.model and len(loaded) == 1
    assert finished.ar.model is finished.parent.model is not finished.dlm.model and len(loaded) == 1
    assert finished.dlm.pattern.block_size == finished_run.config.block_size and finished.ar.token_shift


def test_no_other_code_reads_the_folder_of_a_runs_model():
    """A new command that went past the door would make the folder's path by itself. Training writes it, and what a run
    read of another run's model is named by its fingerprint."""
    own = {"dlm/runs/run.py", "dlm/trainer/fit.py", "dlm/train.py", "dlm/config/inputs.py"}
    files = [path for folder in ("dlm", "analysis") for path in (ROOT / folder).rglob("*.py")]
    found = {p.relative_to(ROOT).as_posix() for p in files if re.search(r"\bmodel_folder\b", p.read_text())}
    assert found == own
