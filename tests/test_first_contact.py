"""`python -m dlm.bench.first_contact`: its items, rehearsed on a CPU, and the lines that it leaves whatever happens."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from common import ROOT

from dlm.bench import contact_items, first_contact

PEAKS = {"tflops": 1.0, "gbs": 10.0}


def numbers(result) -> list[float]:
    """Every number in a result."""
    if isinstance(result, dict | list):
        return [n for value in (result.values() if isinstance(result, dict) else result) for n in numbers(value)]
    return [result] if isinstance(result, float) else []


ALIKE = ("decode 8B", "decode 4B", "train 8B")  # to another item, but for the size


@pytest.mark.trains
@pytest.mark.compiles
@pytest.mark.parametrize(
    "item", [pytest.param(i, marks=pytest.mark.grid if i in ALIKE else ()) for i in contact_items.items()]
)
def test_every_item_gives_numbers_and_finds_a_cpu_to_be_right(item):
    found = contact_items.run(item, "cpu", "tiny", PEAKS)
    assert numbers(json.loads(json.dumps(found))) and all(math.isfinite(n) for n in numbers(found))
    assert found.get("ok", True)
    if "agreement" in found:
        assert found["agreement"]["error"] < 1e-5
        assert found["arms"].keys() == {"ours", "AR", "naive"} and found["with_optimizer"]["ms"] > 0
    for point in (value for key, value in found.items() if key.startswith("batch")):
        assert point["ours, 1 a step"]["tokens_per_forward"] == point["ours, AR"]["tokens_per_forward"] == 1
        assert point["ours, 4 a step"]["tokens_per_forward"] == 4
    assert found.get("share_of_tokens_as_uncompiled", 1.0) == 1.0


def test_the_limits_name_every_item_and_the_first_six_fit_ten_minutes_at_their_limits():
    assert first_contact.LIMITS.keys() == contact_items.items().keys()
    assert sum(list(first_contact.LIMITS.values())[:6]) <= 600


def test_a_line_is_on_the_disk_before_the_next_item_and_an_item_that_fails_costs_one_line(tmp_path, monkeypatch):
    out, seen = tmp_path / "new" / "lines.jsonl", []

    def measure(item, device, scale, peaks, limit, folder):
        seen.append((item, peaks, len(out.read_text().splitlines()), limit))
        return {"item": item, "error": "no"} if item == "attention" else {"item": item, "result": PEAKS | {"x": 1}}

    monkeypatch.setattr(first_contact, "measure", measure)
    lines = first_contact.contact("cuda", "full", 600, out, [])
    assert [json.loads(line) for line in out.read_text().splitlines()] == lines
    assert [item for item, *_ in seen] == list(first_contact.LIMITS)
    assert [peaks for _, peaks, *_ in seen] == [{}, *[PEAKS] * (len(seen) - 1)]
    assert [number for *_, number, _ in seen] == list(range(len(seen)))
    assert all(limit <= first_contact.LIMITS[item] for item, _, _, limit in seen)


def test_when_the_time_is_over_the_items_that_are_left_say_so(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(first_contact.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(first_contact, "measure", lambda item, *_: {"item": item, "result": PEAKS})
    lines = first_contact.contact("cuda", "full", 250, tmp_path / "lines.jsonl", [])
    assert [line.get("error") for line in lines] == [None] * 2 + ["no time was left"] * (len(lines) - 2)


def test_what_an_item_measured_before_its_time_was_over_is_kept(tmp_path, monkeypatch):
    def too_late(command, timeout, **_):
        Path(command[-1]).write_text('{"arms": {"ours": {"ms": 1.0}}}')
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(first_contact.subprocess, "run", too_late)
    line = first_contact.measure("train 8B", "cuda", "full", {}, 60, tmp_path)
    assert line["error"] == "it took more than 60 s" and line["result"] == {"arms": {"ours": {"ms": 1.0}}}


@pytest.mark.trains
def test_every_item_of_several_parts_keeps_each_as_it_comes():
    kept = []
    contact_items.run("train 1.5B", "cpu", "tiny", PEAKS, lambda result: kept.append(len(json.dumps(result))))
    assert len(kept) >= 4 and kept == sorted(kept)


def test_an_item_that_found_something_wrong_is_a_failure():
    assert first_contact.is_failed({"item": "x", "error": "e"})
    assert first_contact.is_failed({"item": "x", "result": {"ok": False}})
    assert not first_contact.is_failed({"item": "x", "result": {"ok": True}})
    assert not first_contact.is_failed({"item": "x", "result": PEAKS})


@pytest.mark.slow
def test_the_command_says_in_a_line_and_a_log_why_an_item_failed_and_fails(tmp_path):
    out = tmp_path / "lines.jsonl"
    command = [sys.executable, "-m", "dlm.bench.first_contact", "--device", "nowhere", "--scale", "tiny"]
    command += ["--out", str(out), "--only", "ceilings"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "failed: ceilings" in done.stdout
    (line,) = map(json.loads, out.read_text().splitlines())
    assert "nowhere" in line["error"] and line.keys() == {"item", "error", "seconds"}
    assert "Traceback" in (tmp_path / "lines" / "ceilings.log").read_text()


def test_an_unknown_item_is_refused_before_any_is_run(tmp_path):
    with pytest.raises(ValueError, match="--only 'attentoin' is unknown: choose from ceilings, attention"):
        first_contact.contact("cpu", "tiny", 600, tmp_path / "lines.jsonl", ["attentoin"])
