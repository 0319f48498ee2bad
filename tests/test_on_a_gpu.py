"""What a model does on a GPU, as a CPU can tell: on a pretended one devices must not mix, and waits are seen."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, config, options

from dlm.config.build import make
from dlm.decoding.engine.loop import Blocks


def result(program: str) -> dict:
    """What a program of tests/on_a_gpu.py finds: the places at which the host waits, by option."""
    command = [sys.executable, str(ROOT / "tests" / "on_a_gpu.py"), program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.trains
def test_every_option_decodes_what_it_decodes_on_a_cpu_and_block_by_block_no_step_waits():
    """The host waits only to see which sequences have finished, and for their tokens."""
    waits = result("decoders")
    assert waits.keys() == set(options("decoding"))
    for name, places in waits.items():
        if type(make(config(f"decoding={name}").decoding).loop) is Blocks:
            assert set(places) <= {"decoding/engine/canvas.py:harvest", "decoding/engine/canvas.py:results"}, name


@pytest.mark.trains
@pytest.mark.parametrize("program", ["training_step", "masks"])
def test_a_training_step_and_its_masks_are_those_of_a_cpu_and_wait_for_nothing(program):
    assert result(program) == {name: [] for name in options("attention")}
