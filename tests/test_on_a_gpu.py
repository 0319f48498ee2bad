"""What a model does on a GPU, as a CPU can tell: on a pretended one devices must not mix, and waits are seen."""

import pytest
from conftest import config, options, said_by

from dlm.config.build import make
from dlm.decoding.engine.loop import Blocks


@pytest.mark.trains
@pytest.mark.parametrize("program", ["loops", pytest.param("decoders", marks=pytest.mark.slow)])
def test_an_option_decodes_what_it_decodes_on_a_cpu_and_block_by_block_no_step_waits(program):
    """The host waits only to see which sequences have finished, and for their tokens."""
    waits = said_by("on_a_gpu.py", program)
    loops = {name: type(make(config(f"decoding={name}").decoding).loop) for name in options("decoding")}
    assert waits.keys() == loops.keys() if program == "decoders" else {loops[n] for n in waits} == {*loops.values()}
    for name, places in waits.items():
        if loops[name] is Blocks:
            assert set(places) <= {"decoding/engine/canvas.py:harvest", "decoding/engine/canvas.py:results"}, name


@pytest.mark.trains
@pytest.mark.parametrize("program", ["training_step", "masks"])
def test_a_training_step_and_its_masks_are_those_of_a_cpu_and_wait_for_nothing(program):
    assert said_by("on_a_gpu.py", program) == {name: [] for name in options("attention")}
