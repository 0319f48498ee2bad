"""Training on a device, as Lightning does it: mixed precision and a fused optimizer."""

import lightning
import pytest
import torch
from conftest import HEADS, MASK_ID, denoiser, ragged, random_model

from dlm.attention.block import Block
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.optimizer.adamw import AdamWCosine
from dlm.types import generator

STEPS = 3


class Steps(lightning.LightningModule):
    """The steps of a conversion without what surrounds them, on the same batch with noise of its own each time."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.losses = denoiser, []

    def training_step(self, seed, index):
        batch = self.denoiser.scorable(ragged(100))
        noised = Uniform()(batch, self.denoiser.pattern.units(batch), MASK_ID, generator(seed))
        inputs, scored = (part.to(self.device) for part in self.denoiser.inputs(batch, noised))
        loss = self.denoiser.loss(inputs, scored, Nelbo(), 200).loss
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self):
        schedule = {"lr": 3e-3, "min_lr_ratio": 0.1, "warmup": 0.0, "weight_decay": 0.1}
        return AdamWCosine(betas=(0.9, 0.95), fused=True, **schedule).build(self.denoiser.model, STEPS)


@pytest.mark.parametrize(
    ("heads", "compiled"),
    [("qwen2-12:2", False), ("qwen3-32:8", False), ("qwen3-32:8", True)],
    ids=["qwen2-12:2", "qwen3-32:8", "compiled"],
)
def test_three_steps_in_mixed_precision_have_nearly_the_losses_of_float32(device, heads, compiled):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        architecture, shape = HEADS[heads]
        steps = Steps(denoiser(random_model(architecture, **shape).train(), Block(32)))
        torch.compiler.reset()
        if compiled:
            steps.denoiser.compile(few_shapes=device != "cpu")
        quiet = {f"enable_{what}": False for what in ("checkpointing", "progress_bar", "model_summary")}
        trainer = lightning.Trainer(
            accelerator="gpu" if device == "cuda" else device,
            devices=1,
            precision=precision,
            max_steps=STEPS,
            logger=False,
            **quiet,
        )
        trainer.fit(steps, range(STEPS))
        losses[precision] = torch.stack(steps.losses).cpu()
    torch.testing.assert_close(losses["bf16-mixed"], losses["32-true"], rtol=2e-2, atol=0)
    assert losses["32-true"].unique().numel() == STEPS
