"""A number that is not finite never reaches a weight, a checkpoint or a result."""

import itertools
import math

import pytest
import torch
from common import config, everyday
from safetensors.torch import load_file
from small_runs import SMALL

from dlm.config import build as building
from dlm.config import training
from dlm.conversion.module import Conversion
from dlm.replay import load, replay
from dlm.runs.run import Run
from dlm.train import train
from dlm.trainer.finite import FiniteGuard, NotFinite, norms_of
from dlm.trainer.metrics import MetricTable
from dlm.types import generator

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]

EVERY_STEP = "runtime.checkpoint_every=1"


@pytest.fixture
def small(runs_dir):
    return lambda *overrides: config(*SMALL, EVERY_STEP, f"runs_dir={runs_dir}", *overrides)


def only_run(runs_dir) -> Run:
    (path,) = runs_dir.glob("*/run.json")
    return Run(path.parent)


def spoil_loss(monkeypatch, value: float) -> None:
    """The third loss is `value`."""
    step = Conversion.training_step

    def spoiled(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        return loss * value if self.micro_batches == 3 else loss

    monkeypatch.setattr(Conversion, "training_step", spoiled)


def spoil_gradient(monkeypatch, value: float) -> None:
    """One entry of one gradient of the third step is `value`."""

    def spoiled(self):
        if self.micro_batches == 3:
            self.denoiser.model.model.norm.weight.grad[0] = value

    monkeypatch.setattr(Conversion, "on_after_backward", spoiled, raising=False)


SPOILS = {"the loss": spoil_loss, "model.norm.weight": spoil_gradient}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", SPOILS)
def test_a_step_that_is_not_finite_stops_the_run_with_the_step_the_tensor_and_the_batch(
    what,
    value,
    fused,
    small,
    runs_dir,
    monkeypatch,
):
    SPOILS[what](monkeypatch, value)
    with pytest.raises(NotFinite, match=rf"step 2: {what}.* not finite.*dlm.replay run="):
        train(small(f"optimizer.fused={fused}"))
    run = only_run(runs_dir)
    assert run.status == "failed" and "NotFinite" in run.record["error"] and not run.model_folder.exists()
    kept = load(run.nonfinite)
    assert kept["step"] == 2 and len(kept["batches"]) == 1
    assert torch.load(run.checkpoint, weights_only=True)["global_step"] == 2
    assert all(torch.isfinite(weight).all() for weight in kept["weights"].values())


@pytest.mark.parametrize(
    ("what", "fused"),
    everyday([("the loss", True), ("model.norm.weight", False), ("the loss", False), ("model.norm.weight", True)], 2),
)
def test_a_step_that_is_skipped_changes_no_weight_and_is_counted(what, fused, small, monkeypatch):
    SPOILS[what](monkeypatch, math.nan)
    seen = []
    check_steps = FiniteGuard.check_steps

    def watched(self, module):
        seen.append([p.detach().clone() for p in module.parameters()])
        check_steps(self, module)

    monkeypatch.setattr(FiniteGuard, "check_steps", watched)
    result = train(small("trainer.on_nonfinite=skip", f"optimizer.fused={fused}", "runtime.checkpoint_every=9"))
    assert result["status"] == "finished" and result["record"]["skipped_steps"] == [2]
    changed = [any(not torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in itertools.pairwise(seen)]
    assert changed == [True, False, True, False]
    assert all(torch.isfinite(p).all() for p in seen[-1])


def test_flags_that_are_looked_at_together_name_the_same_step(small, runs_dir, monkeypatch):
    """As on a GPU, where they stay on the device for `log_every` steps."""
    spoil_gradient(monkeypatch, math.nan)
    start = FiniteGuard.on_train_start

    def as_on_a_gpu(self, trainer, module):
        start(self, trainer, module)
        self.poll = 4

    monkeypatch.setattr(FiniteGuard, "on_train_start", as_on_a_gpu)
    with pytest.raises(NotFinite, match=r"step 2: model.norm.weight not finite"):
        train(small("runtime.checkpoint_every=9"))
    kept = load(only_run(runs_dir).nonfinite)
    assert all(torch.isfinite(weight).all() for weight in kept["weights"].values())


def test_weights_that_are_not_finite_are_never_written(small, runs_dir, monkeypatch):
    def spoil(self, *_):
        if self.trainer.global_step == 4:
            self.denoiser.model.model.norm.weight.data[0] = math.inf

    monkeypatch.setattr(Conversion, "on_train_batch_end", spoil)
    with pytest.raises(NotFinite, match="after step 3 the weights model.norm.weight are not finite, and are not"):
        train(small())
    run = only_run(runs_dir)
    assert not run.model_folder.exists()
    assert all(torch.isfinite(w).all() for w in torch.load(run.checkpoint, weights_only=True)["state_dict"].values())


@pytest.mark.parametrize("pieces", everyday([(("runtime.pieces=2",),), ((),)]))
def test_replay_names_the_module_that_a_number_that_is_not_finite_comes_from(
    pieces,
    small,
    runs_dir,
    monkeypatch,
):
    def broken(*args, **kwargs):
        experiment = building.build(*args, **kwargs)
        experiment.parent.model.model.layers[1].mlp.down_proj.weight.data[0] = 3e38
        return experiment

    with monkeypatch.context() as patch:
        patch.setattr(training, "build", broken)
        with pytest.raises(NotFinite, match="step 0: the loss"):
            train(small(*pieces))
    found = replay(only_run(runs_dir))
    assert found["step"] == 0 and not math.isfinite(found["loss"][0])
    assert found["modules"][0] == "model.layers.1.mlp.down_proj" and "model.layers.0" not in found["modules"]
    assert "model.layers.0.mlp.down_proj.weight" in found["gradients"]


def test_a_run_without_such_a_batch_says_so(small, runs_dir):
    result = train(small())
    assert result["record"]["skipped_steps"] == [] and result["record"]["diverged"] is False
    with pytest.raises(ValueError, match="holds no batch to replay"):
        replay(only_run(runs_dir))
    assert load_file(only_run(runs_dir).model_folder / "model.safetensors")


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([5 - 0.1 * i for i in range(40)], False),
        ([5 + 0.1 * i for i in range(40)], True),
        ([5 + 0.3 * (-1) ** i for i in range(40)], False),
        ([5.0] * 30 + [math.nan] * 10, True),
        ([5.0, 6.0, 7.0, 8.0], False),  # too few to say
        ([], False),
    ],
)
def test_a_loss_that_training_made_worse_is_marked_as_diverged(losses, diverged, tmp_path):
    table = MetricTable(tmp_path / "metrics.csv", 1)
    for step, loss in enumerate(losses):
        table.add(step, {"train/nelbo": loss})
    assert table.diverged() is diverged


def test_an_unknown_reaction_is_refused_before_any_compute(small):
    with pytest.raises(ValueError, match="trainer.on_nonfinite 'ignore' is unknown: choose stop or skip"):
        train(small("trainer.on_nonfinite=ignore"))


def test_the_norms_of_gradients_are_those_of_the_public_function_one_by_one():
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 50, 7)]
    for n, p in enumerate(parameters[:2]):
        p.grad = torch.randn(p.shape, generator=generator(n))
    expected = [torch.nn.utils.get_total_norm([p.grad]) for p in parameters[:2]]
    assert all(map(torch.equal, norms_of(parameters), expected)) and len(norms_of(parameters)) == 2
