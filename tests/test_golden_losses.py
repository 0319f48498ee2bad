"""The loss and the gradient of a first step with every recipe, and with every option of what makes a loss, kept so that
a change of structure changes nothing.

    python tests/test_golden_losses.py [--anew]

adds to tests/data/golden_losses.json what is new, and with --anew writes all of it. Do that only where another
behaviour is meant, and say in the commit which.
It is the step that training makes: the embedded parent, though in float64, and the first batch that a run of its seed
sees, though a small one.
"""

import json
import sys
import tempfile
from pathlib import Path

import lightning
import pytest
import torch
from common import as_before, config, options

from dlm.config.build import build
from dlm.conversion.pieces import loss_of
from dlm.conversion.preparation import TRAIN_STREAM
from dlm.data.packing import collate
from dlm.types import generator

pytestmark = pytest.mark.trains

GOLDEN = Path(__file__).parent / "data" / "golden_losses.json"
CLOSE = 1e-6  # weights of tokens are in float32, and CPUs round them differently: by 6e-8 of the loss at most
ROWS, LENGTH = 2, 64
SMALL = (f"data.length={LENGTH}", f"data.batch_size={ROWS}", f"tokens={ROWS * LENGTH}", "block_size=8")
GROUPS = ("recipe", "loss", "masking", "attention", "auxiliary", "kernel", "noise_level", "rollout")
# What an option has to have beside it.
BESIDE = {
    "attention=ar": ["token_shift=true"],
    "auxiliary=ar": ["attention=block_token_causal"],
    "auxiliary=confidence": ["masking=uniform", "masking.t_max=0.5"],  # some predictions are right
    "auxiliary=consistency": ["masking.views=2", "masking.complementary=false"],
    "rollout=prediction": ["rollout.probability=1.0"],
}
ADD = "run python tests/test_golden_losses.py, which adds what is new"
CHOSEN = ["", *(f"{group}={name}" for group in GROUPS for name in options(group))]


def kept() -> dict[str, dict[str, float]]:
    return json.loads(GOLDEN.read_text())


def first_step(choice: str, runs_dir: Path) -> dict[str, float]:
    """The loss of the first batch, the auxiliary losses in it, and the norm of the whole gradient."""
    overrides = [*([choice] if choice else []), *BESIDE.get(choice, [])]
    cfg = as_before(config(*overrides, *SMALL, "scale=smoke", f"runs_dir={runs_dir}"))
    if "dtype" in cfg.model:
        cfg.model.dtype = "float64"
    lightning.seed_everything(cfg.seed, verbose=False)
    experiment = build(cfg)
    experiment.parent.model.double()  # one whose weights are drawn has no option for that
    conversion, rows = experiment.conversion, experiment.data.train_rows
    noise = generator(cfg.seed, TRAIN_STREAM, 0, 0)
    conversion.train()
    batch = collate([rows[i] for i in range(ROWS)])
    preparation = conversion.preparation
    pieces = preparation.prepare(preparation.scheduled(0.0, noise), batch, noise)
    output, auxiliary = loss_of(conversion.objective, conversion.denoiser, pieces)
    output.loss.backward()
    gradients = [p.grad for p in experiment.parent.model.parameters() if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    found = {"loss": output.loss, "gradient_norm": norm} | auxiliary
    return {name: value.item() for name, value in found.items()}


# A recipe is a choice of options, each of which has a case of its own.
@pytest.mark.parametrize(
    "choice", [pytest.param(c, marks=[pytest.mark.grid] * c.startswith("recipe=")) for c in CHOSEN]
)
def test_a_first_step_is_what_it_always_was(choice, tmp_path):
    assert choice in kept(), ADD
    assert first_step(choice, tmp_path) == pytest.approx(kept()[choice], rel=CLOSE)


def test_the_kept_steps_are_of_all_options():
    assert sorted(kept()) == sorted(CHOSEN), ADD


if __name__ == "__main__":
    known = {} if "--anew" in sys.argv else kept()
    with tempfile.TemporaryDirectory() as folder:
        steps = {choice: known.get(choice) or first_step(choice, Path(folder)) for choice in CHOSEN}
    GOLDEN.write_text(json.dumps(steps, indent=1) + "\n")
