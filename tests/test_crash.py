"""A run that is killed anywhere and started again ends as if nothing had happened, bit for bit."""

import json
import signal

import pytest
from crash import AtCall, AtWrite, InWrite, Processes, elapsed, moments, outcome

KILLED = -signal.SIGKILL
FAULTS = {
    "amid an accumulation": AtCall("dlm.conversion:Conversion.training_step", 6),
    "in a validation": AtCall("dlm.conversion:Conversion.validation_step", 4),
    "in the writing of a checkpoint": InWrite(3),
    "between the renames of a checkpoint": AtWrite(".last.ckpt.tmp", 6),
    "in the final evaluation": AtCall("dlm.evaluate:calibrate", 1),
    "in the writing of the record": AtWrite(".run.json", 7),
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


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_is_killed_ends_bit_for_bit_like_one_that_is_not(fault, processes, straight, tmp_path):
    assert processes.run(tmp_path / "runs", fault=FAULTS[fault]) == KILLED
    assert processes.run(tmp_path / "runs") == 0
    assert outcome(tmp_path / "runs") == straight[0]
