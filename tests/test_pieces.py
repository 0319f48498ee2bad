"""A micro-batch in pieces is the micro-batch, and a run whose device is out of memory goes on in more of them."""

import math

import pytest
import torch
from auxiliaries import EXACT, USES, gradients, objective_of
from common import config, denoiser, everyday, options, random_batch, tiny
from small_runs import SMALL, metrics, weights

from dlm.auxiliary.ar import AR
from dlm.config.build import make
from dlm.conversion.module import Conversion
from dlm.conversion.objective import Objective
from dlm.conversion.pieces import lay_out_pieces, loss_of
from dlm.conversion.prepare import corrupt
from dlm.loss.base import PER
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.checkpointing import checkpoint_activations
from dlm.runs.run import Run
from dlm.train import train
from dlm.types import generator

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]

# In float64, and with layers whose sums are made in another order where there are pieces.
OVERRIDES = (*SMALL, "model.dtype=float64", "trainer.accumulate=2", "data.length=32", "masking=uniform")
OVERRIDES += ("runtime.checkpoint_every=2",)


@pytest.fixture
def in_float64(monkeypatch):
    """Gemma's norms, rotary angles, and parts of Qwen's, go through float32 otherwise."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "float", torch.float64)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def in_pieces(scorer, batch, noised, objective, pieces):
    """Loss, auxiliary losses, nll and gradients of a micro-batch."""
    found = []

    def value():
        found.extend(loss_of(objective, scorer, lay_out_pieces(scorer, batch, noised, objective, pieces)))
        return 2.0 * found[0].loss  # the backward scales

    _, of_weights = gradients(scorer.model, value)
    return found[0].loss.detach(), found[1], found[0].nll, of_weights


def assert_pieces_are_the_whole(scorer, masking, objective, batch):
    batch = scorer.scorable(batch)
    noised = corrupt(scorer, masking, batch, generator(0))
    loss, auxiliary, nll, plain = in_pieces(scorer, batch, noised, objective, 1)
    for pieces in (2, 3, len(batch.x0), 100):
        got = in_pieces(scorer, batch, noised, objective, pieces)
        torch.testing.assert_close(got[0], loss, **EXACT)
        torch.testing.assert_close(got[1], auxiliary, **EXACT)
        torch.testing.assert_close(got[2], nll, **EXACT)
        assert got[3].keys() == plain.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(got[3][name], gradient, **EXACT, msg=name)


def uneven(rows=5, length=16):
    """Documents of several lengths, and a row that is nearly all prompt."""
    batch = random_batch(rows, length, [5, length - 5])
    batch.maskable[1, 2:] = False
    return batch


# Every option, and what else the mean can be taken over.
LOSSES = [[f"loss={name}"] for name in options("loss")] + [["loss=mean", f"loss.per={per}"] for per in PER]


@pytest.mark.parametrize("overrides", LOSSES, ids=" ".join)
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_loss_and_all_gradients_in_pieces_are_those_of_the_whole(architecture, overrides, in_float64):
    """Pieces of 3, 2 and 1 rows, and of five rows in twos the last alone, change nothing (I7)."""
    scorer = denoiser(tiny(architecture), "block", 4, True)
    assert_pieces_are_the_whole(scorer, Uniform(views=2), Objective(make(config(*overrides).loss)), uneven())


@pytest.mark.parametrize("name", options("auxiliary"))
def test_auxiliary_losses_in_pieces_are_those_of_the_whole(name):
    model = tiny("llama")
    pattern, masking = USES.get(name, ("block", Uniform()))
    scorer, objective = denoiser(model, pattern, 4, False), objective_of(name, model)
    torch.manual_seed(1)
    for p in model.parameters():  # a teacher that is not the student
        p.data += 0.05 * torch.randn_like(p)
    assert_pieces_are_the_whole(scorer, masking, objective, uneven())


def test_a_balanced_auxiliary_loss_is_balanced_over_the_whole_in_pieces_too(llama):
    scorer = denoiser(llama, "block_token_causal", 4, False)
    objective = Objective(Nelbo(), {"ar": AR(0.25, balance=True)})
    assert_pieces_are_the_whole(scorer, Uniform(), objective, uneven())


def test_layers_that_are_computed_again_change_nothing_in_pieces():
    model = tiny("qwen3").train()
    checkpoint_activations(model)
    assert_pieces_are_the_whole(denoiser(model, "block", 4, False), Uniform(), Objective(Nelbo()), uneven())


def test_gradients_are_made_once_and_no_more_than_one_piece_is_kept_at_a_time(llama):
    """Every row goes forward once, and what autograd keeps is that of one piece."""
    scorer, batch, objective = denoiser(llama, "block", 4, False), random_batch(4, 16), Objective(Nelbo())
    noised, rows, alive, most = corrupt(scorer, Uniform(), batch, generator(0)), [], 0, []

    class Token:
        """Lives as long as what autograd keeps."""

        def __init__(self, tensor):
            nonlocal alive
            self.tensor, alive = tensor, alive + 1
            most.append(alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    hook = llama.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    peak = {}
    for pieces in (1, 2, 4):
        rows.clear(), most.clear()
        with torch.autograd.graph.saved_tensors_hooks(Token, lambda token: token.tensor):
            in_pieces(scorer, batch, noised, objective, pieces)
        assert rows == [4 // pieces] * pieces
        peak[pieces] = max(most)
    hook.remove()
    assert alive == 0 and peak[2] == peak[4] <= peak[1] + 1


def test_under_mixed_precision_pieces_are_the_whole_up_to_its_rounding():
    scorer, batch = denoiser(tiny("qwen3", torch.float32), "block", 4, False), random_batch(4, 16)
    noised, objective = corrupt(scorer, Uniform(), batch, generator(0)), Objective(Nelbo())
    found = []
    for pieces in (1, 4):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(objective, scorer, lay_out_pieces(scorer, batch, noised, objective, pieces))[0].loss
        scorer.model.zero_grad()
        loss.backward()
        found.append({n: p.grad.clone() for n, p in scorer.model.named_parameters()})
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).norm() <= 0.02 * gradient.norm(), name


class Device:
    """Runs out of memory from the `at`-th micro-batch on wherever there are fewer than `needed` pieces; forward or
    backward."""

    def __init__(self, needed, at, where):
        self.needed, self.at, self.where, self.failures = needed, at, where, 0

    def install(self, monkeypatch):
        step = Conversion.training_step

        def limited(module, batch, batch_idx):
            fails = module.micro_batches >= self.at and len(batch) < self.needed
            if fails and self.where == "forward":
                self.fail()
            loss = step(module, batch, batch_idx)
            if fails:
                loss.register_hook(self.fail)
            return loss

        monkeypatch.setattr(Conversion, "training_step", limited)

    def fail(self, *_):
        self.failures += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore about it")


def run_of(runs_dir, *overrides):
    return train(config(*OVERRIDES, f"runs_dir={runs_dir}", *overrides))


def assert_same_weights(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, **tolerance)


@pytest.mark.slow  # that it goes on row by row is tried every day
@pytest.mark.parametrize(
    ("at", "resumed_from", "where"), everyday([(6, 4, "backward"), (6, 4, "forward"), (1, 0, "forward")])
)
def test_a_run_whose_device_is_out_of_memory_goes_on_in_pieces_to_the_same_weights(
    at,
    resumed_from,
    where,
    runs_dir,
    monkeypatch,
    capsys,
):
    straight = run_of(runs_dir / "straight")
    device = Device(4, at, where)
    device.install(monkeypatch)
    found = run_of(runs_dir)
    printed = capsys.readouterr().out
    assert device.failures == 2  # in one piece, and in two
    assert "a micro-batch of 4 rows is computed in 2 pieces" in printed and "in 4 pieces" in printed
    assert printed.count("resuming run") == (2 if resumed_from else 0)
    assert found["id"] == straight["id"] and found["status"] == "finished"
    assert (straight["record"]["pieces"], found["record"]["pieces"]) == (1, 4)
    assert found["record"]["error"] is None
    assert_same_weights(weights(runs_dir, found), weights(runs_dir / "straight", straight), rtol=1e-10, atol=1e-10)
    ours, expected = metrics(runs_dir, found), metrics(runs_dir / "straight", straight)
    assert list(ours.columns) == list(expected.columns) and list(ours["step"]) == list(expected["step"])
    assert ours.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-9, nan_ok=True)


@pytest.mark.slow
def test_pieces_that_were_needed_from_the_start_are_those_that_were_asked_for(runs_dir, monkeypatch):
    asked = run_of(runs_dir / "asked", "runtime.pieces=4")
    Device(4, 1, "forward").install(monkeypatch)
    needed = run_of(runs_dir)
    assert needed["id"] == asked["id"]
    assert_same_weights(weights(runs_dir, needed), weights(runs_dir / "asked", asked), rtol=0, atol=0)


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_as_many_pieces_as_it_had(runs_dir, monkeypatch):
    device = Device(2, 6, "forward")
    with monkeypatch.context() as patch:
        step = Conversion.training_step

        def breaks(module, batch, batch_idx):
            if module.micro_batches == 8:
                raise KeyboardInterrupt
            return step(module, batch, batch_idx)

        patch.setattr(Conversion, "training_step", breaks)
        device.install(patch)
        with pytest.raises(KeyboardInterrupt):
            run_of(runs_dir)
    assert device.failures == 1
    device.install(monkeypatch)
    found = run_of(runs_dir)
    assert device.failures == 1 and found["record"]["pieces"] == 2
    monkeypatch.undo()
    assert run_of(runs_dir, "force=true")["record"]["pieces"] == 1


def test_a_run_that_does_not_fit_row_by_row_ends_naming_the_remedy(runs_dir, monkeypatch):
    device = Device(5, 6, "forward")
    device.install(monkeypatch)
    with pytest.raises(
        ValueError, match=r"even row by row \(CUDA out of memory.*2.00 GiB.\): choose a shorter data.le"
    ):
        run_of(runs_dir, "runtime.pieces=4")
    assert device.failures == 1  # there are no smaller pieces
    (run,) = (Run(path.parent) for path in runs_dir.glob("*/run.json"))
    assert run.status == "failed" and run.checkpoint.exists() and not run.model_folder.exists()


def test_processes_that_wait_for_each_other_are_told_to_begin_again_in_pieces(runs_dir, monkeypatch):
    Device(4, 1, "forward").install(monkeypatch)
    monkeypatch.setattr("dlm.train.fit", lambda *_: Device(9, 0, "").fail())
    with pytest.raises(ValueError, match=r"give the same command with runtime.pieces=2, it goes on"):
        run_of(runs_dir, "trainer.devices=2")


def test_a_run_that_is_asked_to_stop_as_memory_runs_out_stops(runs_dir, monkeypatch):
    from dlm.trainer.interruption import Interruption

    step = Conversion.training_step

    def stops(module, batch, batch_idx):
        if module.micro_batches == 6:
            next(c for c in module.trainer.callbacks if isinstance(c, Interruption)).requested = True
            Device(9, 0, "").fail()
        return step(module, batch, batch_idx)

    monkeypatch.setattr(Conversion, "training_step", stops)
    with pytest.raises(KeyboardInterrupt):
        run_of(runs_dir)
    (run,) = (Run(path.parent) for path in runs_dir.glob("*/run.json"))
    assert run.status == "interrupted" and run.record["pieces"] == 1 and math.isfinite(run.record["train_seconds"])
