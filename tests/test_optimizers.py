"""Optimizers: every option trains what is trainable, resumes to the same weights, and refuses bad values by name."""

import copy
import math
import re

import pytest
import torch
from common import config, everyday, options, tiny
from small_runs import metrics, small, train_and_interrupt, weights
from test_finite import spoil_gradient
from torch.utils._python_dispatch import TorchDispatchMode

from dlm.config.build import make
from dlm.optimizer.muon import Muon
from dlm.runs.run import Run
from dlm.train import train

OPTIONS = options("optimizer")
STEPS = 10


def built(name: str, *overrides: str, model: torch.nn.Module | None = None) -> dict:
    cfg = config(f"optimizer={name}", "optimizer.warmup=0", *overrides)
    return make(cfg.optimizer).build(model or tiny("llama", torch.float32), STEPS)


def give_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_trainable_parameter_is_in_one_group_and_a_step_changes_it(name):
    model = tiny("llama", torch.float32)
    frozen = model.model.norm.weight.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = built(name, model=model)["optimizer"]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(model.parameters()) - {frozen}
    give_gradients(model, 0)
    optimizer.step()
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == ["model.norm.weight"]


@pytest.mark.parametrize("name", OPTIONS)
def test_matrices_decay_and_vectors_do_not(name):
    for group in built(name, "optimizer.weight_decay=0.3")["optimizer"].param_groups:
        assert {group["weight_decay"]} >= {0.3 if p.ndim >= 2 else 0.0 for p in group["params"]}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_learning_rate_falls_by_the_same_cosine(name):
    both = built(name, "lr=0.5", "optimizer.min_lr_ratio=0.2")
    groups, schedule = both["optimizer"].param_groups, both["lr_scheduler"]["scheduler"]
    peaks = [group["lr"] for group in groups]
    for step in range(STEPS + 1):
        factor = 0.2 + 0.8 * (1 + math.cos(math.pi * step / STEPS)) / 2
        assert [group["lr"] for group in groups] == pytest.approx([factor * peak for peak in peaks])
        both["optimizer"].step()
        schedule.step()


@pytest.mark.parametrize("name", OPTIONS)
def test_an_optimizer_goes_on_from_its_state(name):
    one, two = tiny("llama", torch.float32), tiny("llama", torch.float32)
    first = built(name, model=one)["optimizer"]
    for seed in range(2):
        give_gradients(one, seed)
        first.step()
    second = built(name, model=two)["optimizer"]
    two.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # loading shares tensors
    for model, optimizer in ((one, first), (two, second)):
        give_gradients(model, 2)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest_at_its_own_rate():
    model = tiny("llama", torch.float32)
    groups = built("muon", "lr=0.1", "optimizer.adamw_lr=0.001", model=model)["optimizer"].param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, p in model.named_parameters():
        assert rates[id(p)] == (0.1 if ".layers." in name and p.ndim == 2 else 0.001), name


def test_a_step_of_both_is_a_step_of_each():
    models = [tiny("llama", torch.float32) for _ in range(2)]
    optimizer = built("muon", model=models[0])["optimizer"]
    hidden = [p for n, p in models[1].named_parameters() if ".layers." in n and p.ndim == 2]
    others = [p for p in models[1].parameters() if not any(p is q for q in hidden)]
    muon = Muon(hidden, lr=1e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    adamw.param_groups[0]["weight_decay"] = 0.01
    vectors = [p for p in others if p.ndim < 2]
    adamw.param_groups[0]["params"] = [p for p in others if p.ndim >= 2]
    adamw.add_param_group({"params": vectors, "weight_decay": 0.0})
    for seed in range(3):
        for model in models:
            give_gradients(model, seed)
        optimizer.step()
        muon.step()
        adamw.step()
    assert all(torch.equal(p, q) for p, q in zip(*(m.parameters() for m in models), strict=True))


def steps_of(muon: type[torch.optim.Optimizer]) -> list[torch.Tensor]:
    """How three steps change matrices that are wide, tall and square, in units of the learning rate."""
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 24), (24, 8), (16, 16))]
    before = [p.detach().clone() for p in matrices]
    optimizer = muon(matrices, lr=1e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for p in matrices:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return [(p.detach() - old) / 1e-3 for p, old in zip(matrices, before, strict=True)]


def test_muon_steps_as_that_of_torch_does_to_the_rounding_of_bf16():
    for ours, theirs in zip(steps_of(Muon), steps_of(torch.optim.Muon), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)
        assert ours.abs().max() > 0.3


class Products(TorchDispatchMode):
    """Notes the types in which matrices are multiplied."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.dtypes.append(args[0].dtype)
        return func(*args, **kwargs or {})


def test_muon_multiplies_no_matrices_in_bf16_on_a_cpu():
    with Products() as products:
        steps_of(Muon)
    assert len(products.dtypes) == 3 * 3 * 5 * 3  # steps, matrices, iterations, products of one
    assert set(products.dtypes) == {torch.float32}


BAD = {
    "lr=0": "lr 0 must be > 0",
    "optimizer.min_lr_ratio=2": "optimizer.min_lr_ratio 2",
    "optimizer.warmup=1": "optimizer.warmup 1",
    "optimizer.weight_decay=-1": "optimizer.weight_decay -1 must be >= 0",
    "optimizer.betas=[0.9]": "optimizer.betas [0.9] must be a list of a finite number and a finite number",
    "optimizer.adamw_lr=-1": "optimizer.adamw_lr -1 must be > 0",
    "optimizer.momentum=1": "optimizer.momentum 1 must lie in [0, 1)",
    "optimizer.momentum=much": "optimizer.momentum 'much' must be a finite number",
}


@pytest.mark.parametrize("override", BAD)
@pytest.mark.parametrize("name", OPTIONS)
def test_bad_values_are_refused_by_name(name, override):
    if (
        override.startswith("optimizer.")
        and override[10:].partition("=")[0] not in config(f"optimizer={name}").optimizer
    ):
        return
    with pytest.raises(ValueError, match=re.escape(BAD[override])):
        make(config(f"optimizer={name}", override).optimizer)


@pytest.mark.trains
@pytest.mark.usefixtures("short_prose")
@pytest.mark.slow  # an everyday test above has every optimizer go on from its state, and test_crash.py a run
@pytest.mark.parametrize("name", OPTIONS)
def test_an_interrupted_run_resumes_to_the_same_weights_and_metrics(name, runs_dir, monkeypatch):
    overrides = (f"optimizer={name}", "trainer.accumulate=2", "tokens=2048", "runtime.checkpoint_every=1")
    straight = train(small(runs_dir / "straight", *overrides))
    train_and_interrupt(small(runs_dir, *overrides), monkeypatch)
    assert Run.load(straight["id"], runs_dir).checkpoint.exists()
    resumed = train(small(runs_dir, *overrides))
    expected, found = weights(runs_dir / "straight", straight), weights(runs_dir, resumed)
    assert all(torch.equal(found[n], weight) for n, weight in expected.items())
    assert metrics(runs_dir / "straight", straight).equals(metrics(runs_dir, resumed))


@pytest.mark.trains
@pytest.mark.usefixtures("short_prose")
@pytest.mark.parametrize("name", everyday(sorted(OPTIONS, reverse=True)))
def test_a_step_that_is_not_finite_is_left_out(name, runs_dir, monkeypatch):
    spoil_gradient(monkeypatch, math.nan)
    result = train(small(runs_dir, f"optimizer={name}", "trainer.on_nonfinite=skip"))
    assert result["record"]["skipped_steps"] == [2]
    assert all(torch.isfinite(weight).all() for weight in weights(runs_dir, result).values())


@pytest.mark.trains
@pytest.mark.usefixtures("short_prose")
@pytest.mark.parametrize("name", everyday(OPTIONS))
def test_gradients_are_clipped(name, runs_dir):
    result = train(small(runs_dir, f"optimizer={name}", "trainer.clip=1e-3", "callbacks=none"))
    assert metrics(runs_dir, result)["train/grad_norm"].gt(1e-3).all()
