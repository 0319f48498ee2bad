"""Numbers and block sizes over the course of training."""

import itertools

import pytest
import torch
from common import config, options

from dlm.auxiliary.ar import AR
from dlm.block_schedule.random import Random
from dlm.block_schedule.stages import Stages
from dlm.config.build import build, make
from dlm.conversion.schedule import Schedule, Schedules
from dlm.loss.nelbo import Nelbo
from dlm.masking.position import Position
from dlm.train import train
from dlm.types import generator


def test_a_schedule_is_linear_between_its_points_and_constant_outside():
    schedule = Schedule({0.5: 1.0, 0.25: 0.0, 1: 3.0})
    assert [schedule(p) for p in (0, 0.25, 0.3125, 0.5, 0.75, 1)] == [0, 0, 0.25, 1, 2, 3]
    assert Schedule({0.5: 2.0})(0.1) == Schedule({0.5: 2.0})(0.9) == 2.0
    for bad in ({}, {1.5: 1.0}):
        with pytest.raises(ValueError, match=r"points of progress in \[0, 1\]"):
            Schedule(bad)


def test_between_two_points_a_schedule_moves_by_the_share_of_the_way():
    progress, value = (0.1, 0.35, 0.9), (0.3, -2.0, 1.0)
    schedule = Schedule(dict(zip(progress, value, strict=True)))
    for (p, q), (a, b) in zip(itertools.pairwise(progress), itertools.pairwise(value), strict=True):
        for share in (0.0, 0.125, 1 / 3, 0.9, 1.0):
            assert schedule(p + share * (q - p)) == pytest.approx(a + share * (b - a), rel=1e-14, abs=1e-14)
    assert type(schedule(0.5)) is float


def test_any_number_of_the_objective_can_be_scheduled():
    objects = {"masking": Position(0.1), "loss": Nelbo(), "auxiliary": {"ar": AR(1.0)}}
    paths = {"masking.half_life": {0: 1.0, 1: 0.1}, "auxiliary.ar.weight": {0: 0.0, 1: 1.0}, "loss.scale": {0: 2.0}}
    schedules = Schedules(paths, objects)
    schedules(0.5)
    assert objects["masking"].half_life == pytest.approx(0.55) and objects["auxiliary"]["ar"].weight == 0.5
    assert objects["loss"].scale == 2.0


@pytest.mark.parametrize("path", ["masking", "masking.count", "masking.none", "auxiliary.align.weight", "lr", "a.b.c"])
def test_a_path_to_no_number_is_refused(path):
    with pytest.raises(ValueError, match="names no number"):
        Schedules({path: {0: 1.0}}, {"masking": Position(0.1), "auxiliary": {"ar": AR(1.0)}})


def test_stages_take_their_shares_of_training():
    stages = Stages([1, 4, 16], [1, 1, 2])
    assert [stages(p / 8, generator(0)) for p in range(8)] == [1, 1, 4, 4, 16, 16, 16, 16]
    assert Stages([2, 8])(0.49, generator(0)) == 2 and Stages([2, 8])(0.999999, generator(0)) == 8
    with pytest.raises(ValueError, match="one positive number for each"):
        Stages([2, 8], [1])
    with pytest.raises(ValueError, match="at least 1"):
        Stages([])


def test_random_sizes_come_from_the_generator_alone():
    sizes = [Random([2, 4, 8])(0.5, generator(seed)) for seed in range(60)]
    assert set(sizes) == {2, 4, 8} and sizes == [Random([2, 4, 8])(0.1, generator(seed)) for seed in range(60)]


@pytest.mark.parametrize("name", options("block_schedule"))
def test_every_block_schedule_divides_the_row_and_ends_where_decoding_goes_on(name):
    cfg = config(f"block_schedule={name}", "block_size=16")
    schedule = make(cfg.block_schedule)
    assert all(cfg.data.length % size == 0 for size in schedule.sizes)
    assert 16 in schedule.sizes and (name == "random" or schedule(0.999, generator(0)) == 16)


def test_a_block_size_that_does_not_divide_the_row_is_refused_before_the_parent_is_loaded():
    with pytest.raises(ValueError, match="size 6 must divide data.length 128"):
        build(config("block_schedule=jump", "block_schedule.sizes=[6,16]", "model.path=nowhere"))


@pytest.mark.trains
def test_training_uses_the_scheduled_block_sizes_and_validation_the_last(tmp_path, monkeypatch):
    seen = {True: [], False: []}
    from dlm.conversion.module import Conversion

    inner = Conversion.on_before_batch_transfer

    def spy(self, batch, index):
        prepared = inner(self, batch, index)
        seen[self.trainer.training].append(prepared[0].inputs.pattern.block_size)
        assert self.denoiser.pattern.block_size == 8  # what decoding has, whatever the step
        return prepared

    monkeypatch.setattr(Conversion, "on_before_batch_transfer", spy)
    small = ["tokens=2048", "data.batch_size=4", "logger=csv", "evaluation=none", f"runs_dir={tmp_path}"]
    small += ["data.val_rows=2", "runtime.progress_bar=false", "runtime.val_every=2"]
    record = train(config(*small, "block_size=8", "block_schedule=jump", "block_schedule.shares=[1,1]"))["record"]
    assert record["status"] == "finished"
    assert seen[True] == [4] * 2 + [8] * 2
    assert set(seen[False]) == {8}


def test_the_rows_of_a_run_do_not_depend_on_the_block_size_of_the_step_that_draws_them():
    """Documents are filled up to whole blocks of the final size, whichever step it is: row i is one of (seed, i)."""
    sizes = ["block_size=16", "block_schedule=jump", "block_schedule.sizes=[1,16]", "data.length=64"]
    experiment = build(config("tokens=2048", "data.batch_size=4", *sizes))
    rows = experiment.data.train_rows
    before = [rows[i].document for i in range(8)]
    assert experiment.conversion.preparation.scheduled(0.0, generator(0)).pattern.block_size == 1
    assert all(torch.equal(rows[i].document, document) for i, document in enumerate(before))
