"""A run that is killed anywhere and started again ends as if nothing had happened, bit for bit."""

import random
import signal

import pytest
from crash import AtCall, AtWrite, InWrite, Processes, elapsed, outcome

from dlm.runs.run import Run

pytestmark = [pytest.mark.trains, pytest.mark.processes]

KILLED = -signal.SIGKILL
SLOW = pytest.mark.slow
FAULTS = {
    "amid an accumulation": AtCall("dlm.conversion.module:Conversion.training_step", 6),
    "in a validation": AtCall("dlm.conversion.module:Conversion.validation_step", 2),
    "in the writing of a checkpoint": InWrite(3),
    "between the renames of a checkpoint": AtWrite(".last.ckpt.tmp", 6),
    "in the final evaluation": AtCall("dlm.evaluation.suite:calibrate", 1),
    "in the writing of the record": AtWrite(".run.json", 7),
    "behind the last word of the record": AtCall("dlm.train:send_results", 1),
}


@pytest.fixture(scope="module")
def processes():
    return Processes()


@pytest.fixture(scope="module")
def straight(processes, tmp_path_factory):
    """What the run finds when nothing happens, and how long it takes."""
    runs_dir = tmp_path_factory.mktemp("straight") / "runs"
    seconds = elapsed(lambda: processes.run(runs_dir))
    found = outcome(runs_dir)
    assert found["record"]["status"] == "finished" and not found["checkpoint"] and not found["left over"]
    return found, seconds


@pytest.mark.parametrize("fault", [pytest.param(f, marks=() if "writing of a" in f else SLOW) for f in FAULTS])
def test_a_run_that_is_killed_ends_bit_for_bit_like_one_that_is_not(fault, processes, straight, tmp_path):
    assert processes.run(tmp_path / "runs", fault=FAULTS[fault]) == KILLED
    assert processes.run(tmp_path / "runs") == 0
    assert outcome(tmp_path / "runs") == straight[0]


SIGNALS = {
    "SIGTERM in training": AtCall("dlm.conversion.module:Conversion.training_step", 6, signal.SIGTERM),
    "SLURM's warning in a step": AtCall("dlm.conversion.module:Conversion.training_step", 6, signal.SIGUSR1),
    "Ctrl-C in a validation": AtCall("dlm.conversion.module:Conversion.validation_step", 2, signal.SIGINT),
    "SIGTERM in the final evaluation": AtCall("dlm.evaluation.suite:calibrate", 1, signal.SIGTERM),
}


@pytest.mark.parametrize("fault", [pytest.param(f, marks=() if "training" in f else SLOW) for f in SIGNALS])
def test_a_run_that_is_asked_to_stop_says_so_and_goes_on_where_it_was(fault, processes, straight, tmp_path):
    assert processes.run(tmp_path / "runs", fault=SIGNALS[fault]) == 130
    (run,) = (Run(path.parent) for path in (tmp_path / "runs").glob("*/run.json"))
    assert run.status == "interrupted" and "KeyboardInterrupt" in run.record["error"]
    assert run.checkpoint.exists() or run.model_folder.exists()
    assert processes.run(tmp_path / "runs") == 0
    assert outcome(tmp_path / "runs") == straight[0]


@SLOW
def test_sigterm_costs_no_step_even_where_checkpoints_are_rare(processes, straight, tmp_path):
    rare = "runtime.checkpoint_every=1000"
    fault = AtCall("dlm.conversion.module:Conversion.training_step", 6, signal.SIGTERM)
    assert processes.run(tmp_path / "runs", rare, fault=fault) == 130
    # Twelve micro-batches in all, of which six are made: killed in the seventh that is left, the run would not end.
    rest = AtCall("dlm.conversion.module:Conversion.training_step", 7)
    assert processes.run(tmp_path / "runs", rare, fault=rest) == 0
    assert outcome(tmp_path / "runs") == straight[0]


@SLOW
@pytest.mark.parametrize("seed", range(30))
def test_a_run_that_is_killed_at_random_ends_bit_for_bit_like_one_that_is_not(seed, processes, straight, tmp_path):
    rng = random.Random(seed)
    moment, runs_dir, code = rng.uniform(0, straight[1]), tmp_path / "0" / "runs", 0
    while code != KILLED:  # a run that was faster is done again, and killed earlier
        runs_dir = tmp_path / str(moment) / "runs"
        by_clock = seed % 3
        fault = None if by_clock else AtWrite("", rng.randint(1, 40))
        code = processes.killed_after(moment, runs_dir) if by_clock else processes.run(runs_dir, fault=fault)
        moment /= 2
    if seed % 4 == 0:  # the second attempt is killed, too, if it lasts that long
        processes.killed_after(moment, runs_dir)
    assert processes.run(runs_dir) == 0
    assert outcome(runs_dir) == straight[0]
