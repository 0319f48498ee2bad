"""The self-check before the first step: a violation ends the run with an explanation before compute is spent on wrong
numbers; passed checks are printed in one line. Beside those of `dlm.conversion.selfcheck`:

    no drift     before training, the weights equal the parent's bit for bit                              (I11)
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from lightning import Callback
from safetensors import SafetensorError, safe_open

from dlm.conversion.selfcheck import check
from dlm.evaluation.drift import effective_weights
from dlm.model.denoiser import Denoiser
from dlm.trainable.quantised import is_quantised


class SelfCheck(Callback):
    """Runs the checks when training starts; `seconds` is the time they took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @torch.no_grad()
    def on_train_start(self, trainer, module) -> None:
        began, denoiser = time.perf_counter(), module.denoiser
        untrained = trainer.global_step == 0
        passed = []
        if untrained:
            check_untouched(denoiser, module.reference)
            passed.append("the weights are the parent's")
        row = trainer.datamodule.train_rows[0]
        training = denoiser.training
        denoiser.eval()
        with trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
            passed = check(denoiser, row.x0, "16" in trainer.precision, untrained) + passed
        denoiser.train(training)
        self.seconds = time.perf_counter() - began
        if trainer.is_global_zero:
            print(f"self-check: {'; '.join(passed)}")


def check_untouched(denoiser: Denoiser, reference: Path) -> None:
    """Raises `ValueError` unless the file `reference`, against which drift is measured, holds the model's present
    weights, compared in the precision of training."""
    try:
        with safe_open(reference, framework="pt") as parent:
            differing = [
                name
                for name, weight in effective_weights(denoiser.model, skip=is_quantised)
                for original in [parent.get_tensor(name).to(weight.dtype)]
                if not torch.equal(original, weight.cpu()[: len(original)])
            ]
    except (SafetensorError, OSError) as error:
        differing = [str(error)]
    if differing:
        raise ValueError(
            f"the parent's weights in {str(reference)!r} are not those of the parent ({', '.join(differing[:3])}): the "
            "file is damaged. Delete it, it is written again"
        )
