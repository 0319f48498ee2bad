"""Auxiliary losses as options, for tests of what uses them."""

from common import MASK_ID, config

from dlm.config.build import make_objective
from dlm.masking.uniform import Uniform
from dlm.model.layers import layer_types
from dlm.model.parent import Parent

EXACT = {"rtol": 1e-10, "atol": 1e-10}
# An attention pattern and a masking that an auxiliary loss can be used with.
USES = {
    "ar": ("block_token_causal", Uniform()),
    "consistency": ("block", Uniform(views=2, complementary=False)),
}


def parent_of(model) -> Parent:
    return Parent(model, None, MASK_ID, layer_types(model), "test")


def objective_of(name, model, **kwargs):
    """The objective of an option, its teacher the model itself as it is now."""
    objective = make_objective(config(f"auxiliary={name}"))
    objective.auxiliary[name].bind(parent_of(model))
    return objective


def gradients(model, value):
    model.zero_grad()
    loss = value()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
