"""A run knows what it read: other content under the same name is refused, and is found from any working directory."""

import re
import shutil

import pytest
from common import LIGHT_EVALUATION, ROOT, config, everyday, resolved
from safetensors.torch import load_file, save_file
from small_runs import small

from dlm import measure
from dlm.config.inputs import fingerprint, inputs_of
from dlm.config.values import evaluation_of
from dlm.conversion.module import Conversion
from dlm.data.module import PackedData
from dlm.evaluation.suite import evaluate_run
from dlm.measurement.base import Subject
from dlm.model.parent import Parent
from dlm.runs.identity import run_id
from dlm.runs.run import Run
from dlm.train import train

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]

TEXT = "\n\n".join(f"Paragraph {i} of a text that is short." for i in range(40))
NOW = r"fingerprint (\w{16}), and .* has (?!\1)\w{16} now: bring the old content back, .*force=true"


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A working directory with a text and a parent."""
    folder = tmp_path / "work"
    shutil.copytree(ROOT / "dlm" / "assets" / "tiny", folder / "parent")
    (folder / "text.txt").write_text(TEXT)
    monkeypatch.chdir(folder)
    return folder


def asked(runs_dir, *overrides):
    return small(runs_dir, "data=text", "data.path=text.txt", "model.path=./parent", *overrides)


def other_text(folder):
    (folder / "text.txt").write_text(TEXT.replace("short", "other"))


def other_weights(folder):
    weights = load_file(folder / "parent" / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "parent" / "model.safetensors", {"format": "pt"})


CHANGES = {"data.path": other_text, "model.path": other_weights}


@pytest.mark.parametrize("option", everyday(CHANGES))
def test_a_finished_run_of_other_content_is_refused_and_trained_again_where_it_is_forced(option, outside, runs_dir):
    first = train(asked(runs_dir))
    assert train(asked(runs_dir))["status"] == "skipped"
    CHANGES[option](outside)
    with pytest.raises(ValueError, match=rf"^run {first['id']} read {option} '{re.escape(str(outside))}.*" + NOW):
        train(asked(runs_dir))
    assert train(asked(runs_dir, "force=true"))["status"] == "finished"
    assert train(asked(runs_dir))["status"] == "skipped"


def test_the_same_relative_path_in_another_folder_is_not_the_same_data(outside, runs_dir, tmp_path, monkeypatch):
    train(asked(runs_dir))
    shutil.copytree(outside, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert train(asked(runs_dir))["status"] == "skipped"  # a copy is
    other_text(tmp_path / "copy")
    with pytest.raises(ValueError, match=NOW):
        train(asked(runs_dir))


@pytest.mark.parametrize("option", everyday(reversed(CHANGES)))
def test_an_interrupted_run_does_not_go_on_with_other_content(option, outside, runs_dir, monkeypatch):
    step = Conversion.training_step

    def breaks(self, batch, batch_idx):
        if self.micro_batches == 3:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    every = "runtime.checkpoint_every=1"
    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "training_step", breaks)
        with pytest.raises(KeyboardInterrupt):
            train(asked(runs_dir, every))
    before = outside / "before"
    shutil.copytree(outside, before)
    CHANGES[option](outside)
    with pytest.raises(ValueError, match=NOW):
        train(asked(runs_dir, every))
    shutil.copytree(before, outside, dirs_exist_ok=True)
    with monkeypatch.context() as patch:  # what a hub has under the same name is compared once it is there
        patch.setattr(PackedData, "fingerprint", lambda self: "0" * 16)
        with pytest.raises(ValueError, match=r"began with data of fingerprint \w{16}, and .* has 0000000000000000 now"):
            train(asked(runs_dir, every))
    assert train(asked(runs_dir, every))["status"] == "finished"


def test_a_run_that_failed_before_its_first_checkpoint_may_begin_with_other_content(outside, runs_dir):
    (outside / "text.txt").write_text("one paragraph")
    with pytest.raises(ValueError, match="at least 2 are needed"):
        train(asked(runs_dir))
    (outside / "text.txt").write_text(TEXT)
    assert train(asked(runs_dir))["status"] == "finished"


def test_a_run_from_before_there_were_fingerprints_is_not_compared(outside, runs_dir):
    run = Run.load(train(asked(runs_dir))["id"], runs_dir)
    kept = run.record
    del kept["inputs"], kept["data"]
    run.record_path.unlink()
    run.update(**kept)
    other_text(outside)
    assert train(asked(runs_dir))["status"] == "skipped"


@pytest.mark.slow
def test_the_parent_of_a_measurement_is_the_one_that_was_converted(outside, runs_dir, monkeypatch):
    """In a new measurement and in one that was made before."""
    run = Run.load(train(asked(runs_dir, *LIGHT_EVALUATION))["id"], runs_dir)
    settings = {"_target_": "dlm.measurement.masked.Masked", "draws": 10}
    measure.measure(Subject(run), settings)
    other_text(outside)  # no measurement reads it
    measure.measure(Subject(run), settings)
    with monkeypatch.context() as patch:  # a parent that lies on a hub
        patch.setattr(Parent, "fingerprint", lambda self: "0" * 16)
        patch.setattr("dlm.config.inputs.fingerprint", lambda path: run.record["inputs"]["model.path"]["fingerprint"])
        with pytest.raises(ValueError, match=r"began with a parent of fingerprint \w{16}, and .* 0000000000000000 now"):
            measure_again(run)
    other_weights(outside)
    with pytest.raises(ValueError, match=NOW):
        measure.measure(Subject(run), settings)
    with pytest.raises(ValueError, match=NOW):
        measure_again(run)


def measure_again(run):
    return evaluate_run(run, evaluation_of(config(*LIGHT_EVALUATION).evaluation, run.config.data))


def test_local_paths_are_found_from_another_working_directory(outside, runs_dir, tmp_path, monkeypatch):
    first = train(asked(runs_dir))
    second = train(small(runs_dir, "model=run", f"model.run={first['id']}", f"model.runs_dir={runs_dir}"))
    monkeypatch.chdir(tmp_path)
    found = Run.load(first["id"], runs_dir).config
    assert found.model.path == str(outside / "parent") and found.data.path == str(outside / "text.txt")
    assert Subject(Run.load(first["id"], runs_dir)).parent.fingerprint() == first["record"]["parent"]["fingerprint"]
    assert Run.load(second["id"], runs_dir).config.model.run == str(runs_dir / first["id"])
    shutil.rmtree(outside)
    assert Run.load(first["id"], runs_dir).config.model.path == "./parent"  # as it was asked for


def test_the_id_of_a_run_is_that_of_its_config_as_it_was_asked_for(outside, runs_dir):
    plain = resolved("data=text", "data.path=text.txt", "model.path=./parent")
    before = run_id(plain)
    other_text(outside)
    assert run_id(plain) == before


def test_what_is_fingerprinted_is_what_is_read(outside):
    found = inputs_of(asked(outside / "runs"))
    assert set(found) == {"data.path", "model.path"}
    before = fingerprint(outside / "parent")
    (outside / "parent" / "README.md").write_text("a note")
    assert fingerprint(outside / "parent") == before
    (outside / "parent" / "tokenizer.json").write_text("{}")
    assert fingerprint(outside / "parent") != before
    assert inputs_of(small(outside / "runs"))["model.path"]["path"] == "pkg://dlm/assets/tiny"
    assert set(inputs_of(small(outside / "runs", "model=qwen3_4b"))) == set()
