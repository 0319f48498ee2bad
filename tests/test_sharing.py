"""Any number of processes share a sweep: no point is trained twice, none is left behind by a process that died."""

import os
import signal
import threading
import time

import pytest
from crash import AtCall, Processes, sweep

from dlm.runs.lease import NAME, Busy, is_held, lease
from dlm.runs.run import Run

pytestmark = pytest.mark.trains

LIGHT = ("evaluation.tasks_per_family=0", "tokens=512", "data.mixture={tasks: 1.0}")
ELSEWHERE = "filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken={token}\nduration={seconds}\n"


@pytest.fixture(scope="module")
def processes():
    return Processes()


def held_elsewhere(folder, seconds: float):
    """The lease of a process on another machine."""
    (folder / NAME).write_text(ELSEWHERE.format(token="0" * 32, seconds=seconds))
    return folder / NAME


def test_a_lease_has_one_holder_and_is_free_afterwards(tmp_path):
    assert not is_held(tmp_path)
    with lease(tmp_path):
        assert is_held(tmp_path)
        message = f"run {tmp_path.name} is being worked on by process {os.getpid()} on "
        with pytest.raises(Busy, match=message), lease(tmp_path):
            pytest.fail("two holders")
    assert not is_held(tmp_path) and not list(tmp_path.iterdir())


def test_a_lease_on_another_machine_is_respected_as_long_as_it_is_touched(tmp_path):
    marker, stop = held_elsewhere(tmp_path, 0.5), threading.Event()

    def heartbeat():
        while not stop.wait(0.05):
            os.utime(marker)

    beating = threading.Thread(target=heartbeat)
    beating.start()
    with pytest.raises(Busy, match="process 1 on elsewhere"), lease(tmp_path, 0.5):
        pytest.fail("taken from a living holder")
    stop.set()
    beating.join()
    with lease(tmp_path, 0.5):  # dead now
        assert "elsewhere" not in marker.read_text()


def test_a_clock_that_jumps_ends_no_lease(tmp_path):
    marker = held_elsewhere(tmp_path, 60.0)
    for moment in (0, time.time() + 10**8):  # the last touch seems to be years ago, or to come
        os.utime(marker, (moment, moment))
        assert is_held(tmp_path)


def test_who_loses_a_lease_is_interrupted(tmp_path):
    def lose() -> None:
        with lease(tmp_path, 0.4):
            (tmp_path / NAME).unlink()
            held_elsewhere(tmp_path, 0.4)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        lose()


@pytest.mark.processes
def test_a_run_that_is_worked_on_is_left_alone_and_that_of_a_dead_process_is_taken_over(processes, tmp_path):
    runs_dir = tmp_path / "runs"
    stuck = processes.start(runs_dir, *LIGHT, fault=AtCall("dlm.train:fit", 1, signal.SIGSTOP))
    while not list(runs_dir.glob(f"*/{NAME}")):
        assert stuck.is_alive()
        time.sleep(0.05)
    assert processes.run(runs_dir, *LIGHT) == 1
    assert "is being worked on by process" in (tmp_path / "log").read_text()
    stuck.kill()
    stuck.join()
    (run,) = (Run(path.parent) for path in runs_dir.glob("*/run.json"))
    assert run.status == "running"  # it could not say otherwise
    assert processes.run(runs_dir, *LIGHT) == 0
    assert run.status == "finished"


@pytest.mark.slow
def test_processes_that_are_given_the_same_sweep_train_every_point_once(processes, tmp_path):
    started = [processes.start(tmp_path / "runs", *LIGHT, target=sweep) for _ in range(3)]
    for process in started:
        process.join(300)
    done = [line.split() for line in (tmp_path / "done").read_text().splitlines()]
    assert len(done) == 15
    assert sorted(seed for seed, status in done if status == "finished") == list("01234")
    assert {status for _, status in done} <= {"finished", "busy", "skipped"}
    assert [Run(path.parent).status for path in (tmp_path / "runs").glob("*/run.json")] == ["finished"] * 5
