"""python -m dlm.runs: what is there, what is damaged, and nothing removed that a run needs."""

import json
import resource
import subprocess
import sys
import time

import pytest
from common import ROOT, config
from crash import OVERRIDES

from dlm.runs.__main__ import main
from dlm.runs.differences import differences
from dlm.runs.lease import lease
from dlm.runs.run import LAYOUT, Run

EVALUATION = {"dlm": {"generation": [{"accuracy": 0.634, "tpf": 1.0, "name": "1 token/step"}]}}


def finished(root, *overrides) -> Run:
    """A run as training leaves it, its files but short."""
    run = Run.create(config(*OVERRIDES, f"runs_dir={root}", *overrides), {"attention": "block"})
    run.model_folder.mkdir()
    (run.model_folder / "model.safetensors").write_bytes(bytes(1000))
    for name in ("metrics.csv", "drift.csv", "items.csv", "trace.json"):
        (run.folder / name).write_text("a,b\n1,2\n")
    values = {"parent": {"fingerprint": "f" * 16}, "train": {"val/nelbo": 3.615}, "evaluation": EVALUATION}
    run.update(status="finished", ended=time.time(), **values)
    run.seal()
    return run


@pytest.fixture
def runs(tmp_path):
    return [finished(tmp_path, f"seed={seed}") for seed in range(3)]


def ask(capsys, *arguments) -> tuple[int, str]:
    code = main([*map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.parametrize("command", ["list", "verify", "gc"])
def test_every_record_is_read_once_whatever_else_is_in_the_folder(command, runs, tmp_path, monkeypatch):
    reads, record = [], Run.record.fget
    monkeypatch.setattr(Run, "record", property(lambda run: reads.append(run.id) or record(run)))
    assert main(["--runs", str(tmp_path), command]) == 0
    assert sorted(reads) == sorted(run.id for run in runs)


def test_list_shows_every_run_its_state_and_what_differs(runs, tmp_path, capsys):
    runs[1].update(status="failed", error="Traceback\nValueError: no")
    runs[2].update(status="running")  # by a process that is gone
    code, text = ask(capsys, "--runs", tmp_path, "list")
    assert code == 0 and all(run.id in text for run in runs)
    assert all(word in text for word in ("finished", "failed", "killed", "seed=0", "3.615", "63.4%"))
    assert "block_size" not in text  # the same in all
    _, text = ask(capsys, "--runs", tmp_path, "list", "--status", "failed")
    assert runs[1].id in text and runs[0].id not in text
    with lease(runs[2].folder):
        assert "running" in ask(capsys, "--runs", tmp_path, "list")[1]


@pytest.mark.parametrize(
    ("overrides", "differing"),
    [
        (["auxiliary=ar", "auxiliary=[ar,confidence]"], ["auxiliary.confidence"]),
        (["optimizer.warmup=0.1", "optimizer.warmup=0.2"], ["optimizer.warmup=0.1", "optimizer.warmup=0.2"]),
        (["model.path='a[b]c'", "model.path=d"], ["model.path=a[b]c", "model.path=d"]),
        (["block_size=8", "block_size=16"], ["block_size=8", "block_size=16"]),
    ],
)
def test_list_finds_what_differs_in_the_configs_whatever_option_it_is(
    overrides, differing, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "300")
    for override in overrides:
        finished(tmp_path, override)
    _, text = ask(capsys, "--runs", tmp_path, "list")
    assert all(what in text for what in differing)
    assert "attention.block_size" not in text and "runs_dir" not in text  # what follows, and what is no option


def test_an_option_that_only_one_method_has_follows_from_the_choice_of_the_method():
    a = {"choices": {"masking": "position"}, "config": {"masking": {"half_life": 1.0, "views": 1}, "seed": 0}}
    b = {"choices": {"masking": "uniform"}, "config": {"masking": {}, "seed": 0}}
    assert differences({"a": a, "b": b}) == {"a": {"masking": "position"}, "b": {"masking": "uniform"}}


def test_show_prints_the_record_and_the_traceback_of_a_run_that_failed(runs, tmp_path, capsys):
    runs[0].update(status="failed", error="Traceback (most recent call last):\nValueError: lr 0 must be > 0")
    code, text = ask(capsys, "--runs", tmp_path, "show", runs[0].id[:6])
    assert code == 0 and "ValueError: lr 0 must be > 0" in text and '"accuracy": 0.634' in text


def test_rm_removes_what_is_named_and_no_run_that_is_worked_on(runs, tmp_path, capsys):
    with lease(runs[0].folder):
        code, text = ask(capsys, "--runs", tmp_path, "rm", runs[0].id)
    assert code == 1 and "is being worked on by process" in text and runs[0].folder.exists()
    code, text = ask(capsys, "--runs", tmp_path, "rm", runs[1].id, "nowhere")
    assert code == 1 and runs[1].folder.exists()  # all or none
    code, _ = ask(capsys, "--runs", tmp_path, "rm", runs[1].id)
    assert code == 0 and [run.folder.exists() for run in runs] == [True, False, True]


@pytest.mark.trains
def test_gc_removes_what_no_run_needs_and_nothing_else(runs, tmp_path, capsys):
    runs[1].update(status="interrupted")
    for run in runs:
        run.checkpoint.parent.mkdir()
        run.checkpoint.write_bytes(b"weights")
        (run.folder / ".run.json.abc.tmp").write_text("half")
    (tmp_path / ".parents").mkdir()
    for name in ("f" * 16 + ".safetensors", "0" * 16 + ".safetensors"):
        (tmp_path / ".parents" / name).write_bytes(b"weights")
    before = sorted(tmp_path.rglob("*"))
    code, text = ask(capsys, "--runs", tmp_path, "gc", "--dry-run")
    assert code == 0 and "could be freed" in text and sorted(tmp_path.rglob("*")) == before
    with lease(runs[2].folder):
        assert ask(capsys, "--runs", tmp_path, "gc")[0] == 0
    gone = {str(path.relative_to(tmp_path)) for path in set(before) - set(tmp_path.rglob("*"))}
    first, second, _ = (run.id for run in runs)
    assert gone == {
        f"{first}/checkpoint",
        f"{first}/checkpoint/last.ckpt",
        f"{first}/.run.json.abc.tmp",
        f"{second}/.run.json.abc.tmp",
        ".parents/" + "0" * 16 + ".safetensors",
    }


@pytest.mark.parametrize("name", ["model/model.safetensors", "items.csv", "metrics.csv", "config.yaml", "run.json"])
def test_verify_names_a_file_of_which_one_bit_has_flipped(name, runs, tmp_path, capsys):
    assert ask(capsys, "--runs", tmp_path, "verify") == (0, "3 runs, 0 problems\n")
    path = runs[1].folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, text = ask(capsys, "--runs", tmp_path, "verify")
    assert code == 1 and str(path) in text and "3 runs, 1 problems" in text


@pytest.mark.trains
def test_a_record_of_another_layout_is_refused_and_never_misread(runs, tmp_path, capsys):
    for layout in (LAYOUT - 1, LAYOUT + 1):
        runs[0].record_path.write_text(json.dumps({"layout": layout, "status": "finished"}))
        with pytest.raises(ValueError, match=f"layout {layout} of the runs folder, and this version of dlm reads"):
            _ = runs[0].status
        code, text = ask(capsys, "--runs", tmp_path, "list")
        assert code == 0 and "damaged" in text and "layout" in text


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    code, text = ask(capsys, "--runs", tmp_path / "nowhere", "list")
    assert code == 1 and "is not a folder" in text


@pytest.mark.slow
def test_a_thousand_runs_are_listed_within_two_seconds(tmp_path):
    run = finished(tmp_path)
    record = run.record
    for number in range(999):
        other = tmp_path / f"{number:012d}"
        other.mkdir()
        Run(other).update(**record | {"id": other.name})
    began = cpu_of_children()
    done = subprocess.run(
        [sys.executable, "-m", "dlm.runs", "--runs", tmp_path, "list"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "1000 runs" in done.stdout
    assert cpu_of_children() - began < 2


def cpu_of_children() -> float:
    """Seconds that they computed, which a busy machine does not change."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
