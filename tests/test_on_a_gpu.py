"""What a model does on a GPU, as a CPU can tell: on a pretended one devices must not mix, and waits are seen."""

from functools import cache

import pytest
from common import config, options, said_by

from dlm.config.build import make
from dlm.decoding.engine.loop import Blocks


@cache
def loops() -> dict[str, type]:
    """The class of each decoding option's loop."""
    return {name: type(make(config(f"decoding={name}").decoding).loop) for name in options("decoding")}


def require_no_step_waits(waits: dict[str, list[str]]) -> None:
    """Block by block the host waits only to see which sequences have finished, and for their tokens."""
    for name, places in waits.items():
        if loops()[name] is Blocks:
            assert set(places) <= {"decoding/engine/canvas.py:harvest", "decoding/engine/canvas.py:results"}, name


@pytest.mark.trains
@pytest.mark.compiles
def test_a_step_of_every_loop_and_of_training_is_that_of_a_cpu_and_does_not_wait():
    """A training step, its masks and what is logged of its loss, under every pattern, wait for nothing at all."""
    found = said_by("on_a_gpu.py", "ordinary")
    assert {loops()[name] for name in found["loops"]} == {*loops().values()}
    require_no_step_waits(found["loops"])
    nowhere = {name: [] for name in options("attention")}
    assert found["training_step"] == found["masks"] == found["loss_profile"] == nowhere


@pytest.mark.slow
def test_every_option_decodes_what_it_decodes_on_a_cpu():
    waits = said_by("on_a_gpu.py", "decoders")
    assert waits.keys() == loops().keys()
    require_no_step_waits(waits)
