"""The correctness gate: implementations are timed only if their losses, gradients and tokens agree."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

# The largest relative error, |a - b| / |b| in the 2-norm of a tensor. Rounding errors are ten times smaller.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Some gradients (a key's bias) are pure rounding: no norm that they are divided by is below this share of the norm of
# the whole gradient.
FLOOR = 1e-3

Step = dict[str, Tensor]  # "loss", and the gradient of every parameter under its name


class GateError(ValueError):
    """Two implementations of the same computation differ."""


def require_same_step(ours: Step, other: Step, tolerance: float, whose: str = "naive") -> float:
    """The largest relative error of loss and gradients; `GateError` if it exceeds `tolerance`. `whose` names the other
    implementation."""
    if ours.keys() != other.keys():
        name = sorted(ours.keys() ^ other.keys())[0]
        raise GateError(f"gate failed: only one of ours and {whose} has a gradient of {name}; nothing was timed")
    floor = FLOOR * sum(norm(g) ** 2 for n, g in other.items() if n != "loss") ** 0.5
    worst = 0.0
    for name, actual in ours.items():
        expected = other[name]
        actual = actual.to(expected.device)
        scale = max(norm(expected), floor if name != "loss" else 0.0)
        error = norm(wide(actual) - wide(expected)) / max(scale, 1e-30)
        if not error <= tolerance:  # also true for nan
            what = "loss" if name == "loss" else f"gradient of {name}"
            raise GateError(
                f"gate failed: the {what} differs between ours and {whose} by {error:.3g} (relative; at most "
                f"{tolerance:g}): {norm(actual):.6g} against {norm(expected):.6g} (2-norms); nothing was timed"
            )
        worst = max(worst, error)
    return worst


def norm(tensor: Tensor) -> float:
    return float(wide(tensor).norm())


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, or on a GPU, where that is slow, at least in float32."""
    on_cpu = tensor.device.type == "cpu"
    return tensor.double() if on_cpu else tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def require_same_tokens(pair: str, a: Int[Tensor, "B T"], b: Int[Tensor, "B T"]) -> None:
    """`GateError`, with the first token that differs. `pair` names the two implementations."""
    if a.shape != b.shape:
        raise GateError(f"gate failed: {pair} give {tuple(a.shape)} and {tuple(b.shape)} tokens; nothing was timed")
    differs = (a != b).nonzero()
    if len(differs):
        row, column = differs[0].tolist()
        raise GateError(
            f"gate failed: {pair} differ in {len(differs)} of {a.numel()} tokens, first in sequence {row} at token "
            f"{column}: {int(a[row, column])} against {int(b[row, column])}; nothing was timed"
        )
