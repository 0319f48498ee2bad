"""The gate of the benchmark: what differs between two arms is named, and nothing is timed."""

import pytest
import torch
from common import MASK_ID
from workbenches import losses_of, workbench

from dlm.bench import decode, naive, train
from dlm.bench.gate import TOLERANCE, GateError, require_same_step, require_same_tokens
from dlm.masking.uniform import Uniform


@pytest.mark.parametrize("masking", [Uniform(), Uniform(views=2), Uniform("bernoulli", views=3)])
@pytest.mark.parametrize("token_shift", [False, True])
def test_ours_and_naive_have_the_same_loss_and_all_gradients(model, token_shift, masking):
    bench, _, _, losses = losses_of(model, token_shift, masking=masking)
    assert train.gate(bench, losses) <= TOLERANCE[torch.float64]


def with_gradient(loss, tensor):
    """The same loss, with 1 more as the gradient of every element of a tensor."""
    return loss + (tensor - tensor.detach()).sum()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda loss, model: loss * 1.25, "the loss differs between ours and naive by 0.2 "),
        (lambda loss, model: loss.detach() + (loss - loss.detach()) / 2, "the gradient of .* by 1 "),
        (lambda loss, model: with_gradient(loss, model.model.norm.weight), "the gradient of model.norm.weight differs"),
    ],
)
def test_the_gate_names_what_differs(llama, fault, message):
    bench, _, _, losses = losses_of(llama)
    right = losses[train.NAIVE]
    faulty = losses | {train.NAIVE: lambda: fault(right(), llama)}
    with pytest.raises(GateError, match=f"gate failed: ({message}).*nothing was timed"):
        train.gate(bench, faulty)


def test_the_gate_sees_a_naive_arm_that_may_predict_the_mask_token(llama, monkeypatch):
    monkeypatch.setattr(naive, "without_mask_token", lambda logits, mask_id: logits.float())
    bench, _, _, losses = losses_of(llama)
    with pytest.raises(GateError, match="differs"):
        train.gate(bench, losses)


def test_the_gate_sees_a_missing_gradient_and_nan():
    one = torch.ones(3)
    with pytest.raises(GateError, match="only one of ours and naive has a gradient of b"):
        require_same_step({"loss": one, "a": one}, {"loss": one, "a": one, "b": one}, 1e-4)
    with pytest.raises(GateError, match="gradient of a"):
        require_same_step({"loss": one, "a": one * torch.nan}, {"loss": one, "a": one}, 1e-4)
    tiny_noise = {"loss": one, "a": one * 1e-9, "b": one * 1e3}  # a gradient that is nothing but rounding
    assert require_same_step(tiny_noise, tiny_noise | {"a": -one * 1e-9}, 1e-4) < 1e-8


def test_a_wrong_token_is_named():
    a = torch.tensor([[1, 2], [3, 4]])
    require_same_tokens("x and y", a, a.clone())
    with pytest.raises(GateError, match="x and y differ in 1 of 4 tokens, first in sequence 1 at token 0: 3 against 9"):
        require_same_tokens("x and y", a, torch.tensor([[1, 2], [9, 4]]))
    with pytest.raises(GateError, match="tokens"):
        require_same_tokens("x and y", a, a[:, :1])


def test_nothing_is_timed_after_a_failed_gate(llama, monkeypatch):
    monkeypatch.setattr(decode, "interleaved", lambda *args: pytest.fail("timed"))
    right = naive.decode
    monkeypatch.setattr(naive, "decode", lambda *args: (right(*args) + 1) % MASK_ID)
    with pytest.raises(GateError, match="ours and the naive loop differ"):
        decode.Decode(8, 8, [1], [4], [1]).run(workbench(llama))
