"""A run is its config: identity, records that are whole, runs that are found or named as missing."""

import functools
import json

import pytest
from common import config, resolved
from omegaconf import OmegaConf

from dlm.runs import identity
from dlm.runs import run as runs
from dlm.runs.identity import run_id
from dlm.runs.run import Run
from dlm.runs.storage import write_atomically


def made(root, *overrides, **record) -> Run:
    run = Run.create(config(f"runs_dir={root}", *overrides), {"recipe": "none"})
    run.update(**record)
    return run


VOLATILE = [
    "logger=csv",
    "runs_dir=elsewhere",
    "force=true",
    "trainer.compile=true",
    "runtime.threads=1",
    "runtime.strategy=ddp",
    "runtime.progress_bar=false",
    "evaluation=none",
    "evaluation.tasks_per_family=3",
    "decoding=fixed",
]
MATTERS = [
    "seed=1",
    "lr=2e-4",
    "tokens=1000",
    "block_size=4",
    "token_shift=true",
    "attention=bidir",
    "masking=uniform",
    "masking.t_min=0.1",
    "loss=mean",
    "trainable=lora",
    "optimizer.warmup=0.1",
    "data.length=256",
    "trainer.clip=0.5",
    "trainer.devices=2",
    "model.path=elsewhere",
]


@pytest.mark.parametrize("override", VOLATILE)
def test_the_id_does_not_change_with_what_cannot_change_the_weights(override):
    assert run_id(resolved(override)) == run_id(resolved())


def test_tokens_are_no_part_of_a_run_whose_budget_is_counted_otherwise():
    other = [["budget.unit=examples", "budget.amount=100", f"tokens={n}"] for n in (1000, 2000)]
    assert run_id(resolved(*other[0])) == run_id(resolved(*other[1])) != run_id(resolved())
    assert run_id(resolved(*other[0])) != run_id(resolved(*other[0][:1], "budget.amount=200"))


@pytest.mark.trains
def test_the_id_changes_with_every_choice_that_can():
    ids = [run_id(resolved(*o)) for o in ([], *([m] for m in MATTERS))]
    assert len(set(ids)) == len(MATTERS) + 1


def test_the_id_does_not_depend_on_the_order_of_keys():
    whole = resolved()
    assert run_id(dict(reversed(whole.items()))) == run_id(whole)


def test_an_id_is_never_a_number_on_a_command_line(monkeypatch):
    for digest, expected in (("792727637636", "n92727637636"), ("12e345678901", "h2e345678901"), ("12e3f5678901",) * 2):
        monkeypatch.setattr(identity, "digest", lambda _, digest=digest: digest)
        assert run_id(resolved()) == expected
        assert OmegaConf.from_dotlist([f"run={expected}"]).run == expected


def test_a_new_option_at_its_neutral_value_keeps_the_id_of_existing_runs(monkeypatch):
    before, new = run_id(resolved()), resolved()
    new["masking"]["novel"] = 1
    assert run_id(new) != before
    monkeypatch.setattr(identity, "NEUTRAL", {"masking.novel": 1} | identity.NEUTRAL)
    assert run_id(new) == before
    new["masking"]["novel"] = 2
    assert run_id(new) != before


def test_create_keeps_the_record_and_config_of_a_run_that_is_there(tmp_path):
    run = made(tmp_path, status="finished", found=1.5)
    config_before = (run.folder / "config.yaml").read_text()
    again = Run.create(config(f"runs_dir={tmp_path}", "evaluation=none", "logger=csv"), {})
    assert again.id == run.id and again.record["found"] == 1.5 and again.status == "finished"
    assert (run.folder / "config.yaml").read_text() == config_before


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "record.json"
    write_atomically(file, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "new and longer")
    assert file.read_text() == "old"


def test_a_damaged_record_is_named(tmp_path):
    run = made(tmp_path)
    run.record_path.write_text('{"id": "abc", "sta')
    with pytest.raises(ValueError, match=r"run.json is damaged .* delete the run's folder"):
        _ = run.status


def test_a_run_is_found_by_id_by_the_beginning_of_it_and_by_folder(tmp_path):
    run = made(tmp_path)
    for name in (run.id, run.id[:5], str(run.folder)):
        assert Run.load(name, tmp_path).folder == run.folder


def test_a_missing_run_is_named_beside_those_that_exist(tmp_path):
    run = made(tmp_path)
    with pytest.raises(ValueError, match=f"run 'nowhere' does not exist in .*: choose one of {run.id}"):
        Run.load("nowhere", tmp_path)
    with pytest.raises(ValueError, match="choose one of none"):
        Run.load("nowhere", tmp_path / "empty")


def test_an_ambiguous_beginning_is_refused(tmp_path):
    for name in ("abc111", "abc222"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"status": "new"}))
    with pytest.raises(ValueError, match="run 'abc' is ambiguous"):
        Run.load("abc", tmp_path)


def test_newest_is_the_finished_run_that_ended_last_with_the_given_choices(tmp_path):
    old = made(tmp_path, "seed=1", status="finished", ended=1.0)
    new = made(tmp_path, "seed=2", status="finished", ended=2.0)
    made(tmp_path, "seed=3", status="failed", ended=3.0)
    assert Run.newest(tmp_path).id == new.id
    old.update(choices={"pretrain": "embedded"})
    assert Run.newest(tmp_path, pretrain="embedded").id == old.id
    new.update(sweeps=["parents"])
    assert Run.newest(tmp_path, of_sweeps=False).id == old.id
    with pytest.raises(ValueError, match=r"no finished run with recipe=x: make one with python -m dlm.train recipe=x"):
        Run.newest(tmp_path, recipe="x")


def test_the_environment_says_versions_commit_and_machine():
    found = runs.environment("cpu")
    assert found["versions"].keys() == {"python", *runs.PACKAGES}
    assert found["machine"]["cpus"] > 0 and found["machine"]["device"] == "cpu"


@pytest.mark.parametrize("key", identity.NEUTRAL)
def test_an_option_at_its_neutral_value_is_as_if_it_were_not_there_and_another_value_is_another_run(key):
    config = resolved(*(["trainable=lora"] if key.startswith("trainable.") else []))  # the default has no such option
    *groups, leaf = key.split(".")
    node = functools.reduce(lambda found, name: found[name], groups, config)
    node[leaf] = identity.NEUTRAL[key]
    before = run_id(config)
    del node[leaf]
    if not node:  # a group that was not there
        del config[groups[0]]
    assert run_id(config) == before
    node[leaf] = 7
    config |= {group: node for group in groups if group not in config}
    assert run_id(config) != before


def test_a_run_is_made_whole_even_where_a_killed_process_left_a_folder_without_a_record(tmp_path):
    cfg = config(f"runs_dir={tmp_path}")
    folder = tmp_path / run_id(OmegaConf.to_container(cfg, resolve=True))
    folder.mkdir()
    (folder / "config.yaml").write_text("seed")
    run = Run.create(cfg, {})
    assert run.status == "new" and run.config.seed == 0
    assert not list((tmp_path / ".tmp").iterdir())
    assert list(tmp_path.glob("*/run.json")) == [run.record_path]
