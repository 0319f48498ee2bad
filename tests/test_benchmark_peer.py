"""dllm beside ours: the worker does the same work, whatever differs or dies is named, memory is that of one process.

No dllm is needed: `fake_dllm` stands for it, in a process of its own like the real one.
"""

import json
import os
import sys
import time
from functools import partial

import pytest
import torch
from common import ROOT, tiny
from rich.console import Console
from workbenches import SMALL, workbench

from dlm import benchmark as command_module
from dlm.bench import decode, memory, train
from dlm.bench.gate import TOLERANCE, GateError
from dlm.bench.peer import DLLM, Dllm, Worker, converted
from dlm.evaluation.timing import Arm, Elsewhere, interleaved

pytestmark = pytest.mark.trains


def clone(folder, package=ROOT / "tests" / "fake_dllm"):
    """A folder like a clone with its environment: the package, and this Python under the name of its own."""
    (folder / "dllm").symlink_to(package)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(folder)


# Their process takes ten seconds, and what it is asked changes with dllm only.
of_a_peer = pytest.mark.slow


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    with Dllm(clone(tmp_path_factory.mktemp("peer")), "cpu") as started:
        yield started
    assert not started.path.exists() and started.worker.process.returncode is not None  # nothing is left behind


@pytest.fixture(scope="module")
def qwen():
    model = tiny("qwen3")
    model.config.rope_parameters["rope_theta"] = 50.0  # not the default, which would hide that it was lost
    model.model.rotary_emb.__init__(model.config)
    return model


TRAIN, DECODE = train.Train(32, 2, 8, memory=False), decode.Decode(16, 16, [2], [8], [2])


@of_a_peer
def test_a_peers_training_step_is_ours_and_is_reported(peer, qwen):
    found = TRAIN.run(workbench(qwen, peer=peer, clock=time.process_time))
    assert found["gate"]["max_relative_error"] <= TOLERANCE[torch.float64]
    assert len(found["seconds"][DLLM]) == 2 and min(found["seconds"][DLLM]) > 0
    counts = found["counts"]
    assert counts[DLLM]["rows_network"] == counts[DLLM]["rows_head"] == 2 * 2 * 32  # one step's, of several made
    assert counts[DLLM]["flop_useful"] == counts[train.OURS]["flop_useful"]
    assert counts[DLLM]["flop_executed"] is None and counts[DLLM]["peak_bytes"] is None
    assert "ours, naive, dllm: the same" in shown(TRAIN, found)


@of_a_peer
def test_a_peers_tokens_are_ours_and_are_reported(peer, qwen):
    found = DECODE.run(workbench(qwen, peer=peer, clock=time.process_time, peak_bandwidth_gbs=1.0))
    (point,) = found["points"]
    assert point["arms"][DLLM]["forwards"] == 2 * 4  # the fake has no prefill
    assert point["arms"][DLLM]["fraction_of_bandwidth"] is None
    assert point["arms"][DLLM]["speed_over_dllm"] == {"median": 1, "min": 1, "max": 1}
    assert "speed / dllm" in (text := shown(DECODE, found)) and "naive loop = dllm" in text


def shown(bench, found) -> str:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for table in bench.tables(found):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    return text


@of_a_peer
def test_the_gate_sees_a_peer_that_hides_other_tokens(peer, qwen, monkeypatch):
    right = Dllm.train_on
    monkeypatch.setattr(Dllm, "train_on", lambda self, x, masked, *args: right(self, x, masked.roll(1, 1), *args))
    monkeypatch.setattr(train, "interleaved", lambda *args: pytest.fail("timed"))
    with pytest.raises(GateError, match="the loss differs between ours and dllm by .* nothing was timed"):
        TRAIN.run(workbench(qwen, peer=peer))


@of_a_peer
def test_the_gate_sees_a_peer_that_decodes_other_tokens(peer, qwen, monkeypatch):
    right = Dllm.decode_after
    monkeypatch.setattr(Dllm, "decode_after", lambda self, ids, *args: right(self, ids.roll(1, 1), *args))
    monkeypatch.setattr(decode, "interleaved", lambda *args: pytest.fail("timed"))
    with pytest.raises(GateError, match="ours and dllm differ in"):
        DECODE.run(workbench(qwen, peer=peer))


@of_a_peer
def test_tokens_per_step_that_are_no_number_of_steps_are_refused(peer, qwen):
    bench = decode.Decode(16, 16, [2], [8], [3])
    with pytest.raises(ValueError, match="tokens_per_step 3 must divide block_size 8 .*: choose one of 1, 2, 4, 8"):
        bench.run(workbench(qwen, peer=peer))


@of_a_peer
def test_a_model_that_dllm_does_not_have_is_named(peer):
    """It is the end of the process: the tests above need it."""
    with pytest.raises(ValueError, match="at 'load' .* dllm has no model type a2d-llama: choose a model of a2d-qwen3"):
        peer.load(tiny("llama", torch.float32), 60)  # a model is sent again in another precision


def test_a_scaled_rope_goes_over_in_the_old_spelling():
    default = {"model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    assert converted(default) == {
        "model_type": "a2d-qwen3",
        "architectures": None,
        "rope_theta": 5.0,
        "rope_scaling": None,
    }
    yarn = {"rope_type": "yarn", "factor": 4.0}
    scaled = converted({"model_type": "qwen3", "rope_parameters": yarn | {"rope_theta": 5.0}})
    assert scaled["rope_theta"] == 5.0 and scaled["rope_scaling"] == yarn


# --- errors


@pytest.mark.parametrize(("made", "missing"), [((), "dllm/__init__.py"), (("dllm",), ".venv/bin/python")])
def test_a_folder_that_is_no_installed_clone_is_refused_before_the_model_is_loaded(
    benchmark_command,
    tmp_path,
    monkeypatch,
    made,
    missing,
):
    monkeypatch.setattr(command_module, "make_workbench", lambda *args: pytest.fail("loaded"))
    for name in made:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    code, _, err = benchmark_command(f"peer.dllm={tmp_path}")
    assert code == 1 and f"has no {missing}" in err and "pip install -e ." in err and err.count("\n") == 1


def test_an_environment_without_its_packages_is_refused_with_the_reason_and_the_remedy(
    benchmark_command, tmp_path, monkeypatch
):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("import no_such_package\n")
    monkeypatch.setattr(command_module, "make_workbench", lambda *args: pytest.fail("loaded"))
    code, _, err = benchmark_command(f"peer.dllm={clone(tmp_path, package)}")
    assert code == 1 and "No module named 'no_such_package'" in err and "pip install -e ." in err
    assert err.count("\n") == 1


def test_the_token_shift_is_refused_beside_a_peer(benchmark_command, tmp_path):
    code, _, err = benchmark_command(f"peer.dllm={clone(tmp_path)}", "token_shift=true")
    assert code == 1 and "set token_shift=false" in err


ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
DYING = "import sys\ninput()\nprint('first', file=sys.stderr)\nprint('out of memory\\n', file=sys.stderr)\nsys.exit(3)"


def test_a_worker_answers_line_by_line_and_its_death_tells_the_last_line_of_stderr(tmp_path):
    worker = Worker([sys.executable, "-c", ECHO], dict(os.environ), tmp_path / "stderr")
    assert worker.ask(do="a", x=1) == {"do": "a", "x": 1} and worker.ask(do="b") == {"do": "b"}
    worker.close()
    worker = Worker([sys.executable, "-c", DYING], dict(os.environ), tmp_path / "stderr")
    for _ in range(2):  # a dead one says so again
        with pytest.raises(ValueError, match="the process of dllm ended at 'step' with code 3: out of memory"):
            worker.ask(do="step")
    worker.close()


# --- times and memory


def test_an_arm_elsewhere_counts_its_own_seconds():
    times = interleaved({"a": Elsewhere(lambda: 7.0), "b": Arm(lambda: None)}, 2, 1, clock=lambda: 1.0)
    assert times == {"a": [7.0, 7.0], "b": [0.0, 0.0]}


on_linux = pytest.mark.skipif(not memory.measurable(), reason="no /proc/self/clear_refs")


@on_linux
def test_peak_memory_is_of_the_work_and_not_of_what_was_before():
    size = 2**28
    many = memory.peak_resident(lambda: torch.ones(size, dtype=torch.uint8))
    few = memory.peak_resident(lambda: torch.ones(size // 16, dtype=torch.uint8))
    assert 0.95 * size * 15 / 16 < many - few < 1.05 * size


def test_a_fresh_process_is_another_one():
    assert memory.in_a_fresh_process(os.getpid) != os.getpid()


@on_linux
def test_an_arm_alone_is_made_anew_and_needs_more_than_its_weights():
    model = tiny("llama", torch.float32)
    peak = train.peak_in_this_process(partial(workbench, model), TRAIN, train.NAIVE)
    assert peak > sum(p.nbytes for p in model.parameters())


@pytest.mark.slow
@on_linux
def test_the_command_measures_the_memory_of_every_arm_beside_a_peer(benchmark_command, tmp_path):
    small = [option for option in SMALL["train"] if option != "bench.memory=false"]
    code, printed, err = benchmark_command(
        *small, f"peer.dllm={clone(tmp_path)}", "clock=cpu", "threads=1", f"out={tmp_path}/r"
    )
    assert code == 0, err
    record = json.loads((tmp_path / "r").read_text())
    assert record["peer"]["name"] == DLLM and record["peer"]["versions"]["torch"] == torch.__version__
    peaks = {name: c["peak_bytes"] for name, c in record["result"]["counts"].items()}
    assert set(peaks) == {train.OURS, train.NAIVE, train.AR, DLLM} and min(peaks.values()) > 5e7
    assert "peak GB" in printed and "/ ours" in printed
