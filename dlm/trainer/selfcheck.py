"""What every run checks of itself before its first step, on the real parent and a real text: a few forwards of at most
three blocks. A violation ends the run with an explanation, before any compute is spent on wrong numbers.

    no leak      what scores a masked token depends neither on its clean value nor on a later block       (I4)
    parity       training scores a partly masked block as decoding does, clean prefix in the cache        (I3)
    AR limit     in blocks of one token with the token shift, the parent's own likelihood: NELBO = NLL    (I1)
    no drift     before training the weights are the parent's, bit for bit                                (I11)
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from lightning import Callback
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlm.attention.ar import AR
from dlm.decoding.canvas import Canvas
from dlm.decoding.step import forward
from dlm.evaluation.drift import effective_weights
from dlm.model.closeness import distance, tolerance
from dlm.model.denoiser import Denoiser
from dlm.types import Batch, Noised


class SelfCheck(Callback):
    """Runs the checks as training begins; `seconds` is what they cost."""

    def __init__(self, reference: Path):
        self.reference, self.seconds = reference, 0.0

    @torch.no_grad()
    def on_train_start(self, trainer, module) -> None:
        began, denoiser = time.perf_counter(), module.denoiser
        if trainer.global_step == 0:
            check_untouched(denoiser, self.reference)
        row = trainer.datamodule.validation_rows[0]
        training = denoiser.training
        denoiser.eval()
        with trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
            probe = Probe.of(denoiser, row.x0)
            half = "16" in trainer.precision
            check_leak(denoiser, probe, half)
            check_parity(denoiser, probe, half)
            if trainer.global_step == 0 and is_ar_limit(denoiser):
                check_ar_limit(denoiser, probe, half)
        denoiser.train(training)
        self.seconds = time.perf_counter() - began


@dataclass(frozen=True)
class Probe:
    """Some tokens of text, of which those in `masked` are hidden: the second half of the first or second block."""

    x0: Int[Tensor, "1 L"]
    begin: int
    end: int

    @classmethod
    def of(cls, denoiser: Denoiser, text: Int[Tensor, " L"]) -> Probe:
        size = denoiser.pattern.block_size
        blocks = min(3, len(text) // size)
        block = min(1, blocks - 1)
        return cls(text[None, : blocks * size], block * size + size // 2, (block + 1) * size)

    def logits(self, denoiser: Denoiser) -> Float[Tensor, "N V"]:
        """What training computes of the hidden tokens."""
        x0 = self.x0
        masked = torch.zeros_like(x0, dtype=torch.bool)
        masked[:, self.begin : self.end] = True
        position = torch.arange(x0.shape[1])[None]
        batch = Batch(x0, torch.ones_like(masked), torch.zeros_like(x0), position)
        inputs, _ = denoiser.inputs(batch, Noised(torch.where(masked, denoiser.mask_id, x0), masked, masked.float()))
        return denoiser(inputs.to(denoiser.model.device))

    def changed(self, where: slice, mask_id: int) -> Probe:
        """With other tokens there: those of the text in reverse, and one further where that is the same."""
        x0, part = self.x0.clone(), self.x0[:, where]
        other = torch.where(part.flip(1) == part, self.x0[:, :1], part.flip(1))
        # A text of one token repeated has no other; any id that is neither this one nor the mask will do.
        spare = next(i for i in range(3) if i not in (mask_id, int(self.x0[0, 0])))
        x0[:, where] = torch.where(other == part, spare, other)
        return replace(self, x0=x0)


def check_leak(denoiser: Denoiser, probe: Probe, half: bool) -> None:
    end = probe.x0.shape[1] if denoiser.pattern.cacheable else probe.end
    before = probe.logits(denoiser)
    far = distance(probe.changed(slice(probe.begin, end), denoiser.mask_id).logits(denoiser), before)
    if far > allowed(denoiser, half):
        raise violation(
            denoiser, f"what it predicts of a hidden token changes by {far:.2g} with that token or with later blocks: "
            "it would learn to copy"
        )  # fmt: skip


def check_parity(denoiser: Denoiser, probe: Probe, half: bool) -> None:
    prompt = probe.x0[0, : probe.begin].tolist()
    if not prompt:  # nothing to go on from
        return
    training = replace(probe, x0=probe.x0[:, : probe.end]).logits(denoiser)
    canvas = Canvas(denoiser, [prompt], [0], probe.end - probe.begin, probe.end)
    decoding, _ = forward(denoiser, canvas)
    far = distance(decoding, training)
    if far > allowed(denoiser, half):
        raise violation(denoiser, f"decoding scores a block otherwise than training, by {far:.2g}")


def is_ar_limit(denoiser: Denoiser) -> bool:
    """Whether an untrained denoiser is its parent: blocks of one token, and nothing later is seen."""
    return denoiser.pattern.block_size == 1 and denoiser.pattern.cacheable and denoiser.token_shift


def check_ar_limit(denoiser: Denoiser, probe: Probe, half: bool) -> None:
    parent = Denoiser(denoiser.model, AR(), denoiser.mask_id, True, denoiser.layer_types)
    far = distance(probe.logits(denoiser), probe.logits(parent))
    if far > allowed(denoiser, half):
        raise violation(
            denoiser, f"with blocks of one token it is not its parent, by {far:.2g}: NELBO < NLL is possible"
        )


def check_untouched(denoiser: Denoiser, reference: Path) -> None:
    """`ValueError` where the file that drift is measured against does not hold the weights as they are now, in the
    precision in which they are trained."""
    try:
        with safe_open(reference, framework="pt") as parent:
            wrong = [
                name
                for name, weight in effective_weights(denoiser.model)
                for original in [parent.get_tensor(name).to(weight.dtype)]
                if not torch.equal(original, weight.cpu()[: len(original)])
            ]
    except (SafetensorError, OSError) as error:
        wrong = [str(error)]
    if wrong:
        raise ValueError(
            f"the parent's weights in {str(reference)!r} are not those of the parent ({', '.join(wrong[:3])}): the "
            "file is damaged. Delete it, it is written again"
        )


def allowed(denoiser: Denoiser, half: bool) -> float:
    """How far apart logits may be; `half` where Lightning computes in 16 bits whatever the weights are in."""
    return tolerance(torch.float16 if half else denoiser.model.dtype)


def violation(denoiser: Denoiser, what: str) -> ValueError:
    pattern = type(denoiser.pattern).__name__
    return ValueError(
        f"self-check: {denoiser.model.config.model_type} under the attention pattern {pattern} cannot be converted: "
        f"{what}. Nothing was trained. Try model.attn_implementation=eager; if that is refused as well, the parent's "
        "forward does not obey its attention mask"
    )
