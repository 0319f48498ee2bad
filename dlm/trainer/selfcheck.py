"""What every run checks of itself before its first step, on the real parent and a real text: a few forwards of one row,
of its first, second and last block. A violation ends the run with an explanation, before any compute is spent on wrong
numbers; what passed is printed in one line. (The pattern's predicate alone is checked as it is built, by
`dlm.attention.check`.)

    no leak      what scores a hidden token depends neither on its clean value nor on a later block       (I4)
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
from dlm.attention.check import rows_at
from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.step import forward
from dlm.evaluation.drift import effective_weights
from dlm.model.closeness import distance, tolerance
from dlm.model.denoiser import Denoiser
from dlm.types import Batch, ModelInputs, Noised

LONGEST = 1024  # tokens of a text that are read: without a compiled kernel their attention matrix is a whole one
OF_PARENT = (
    "Try model.attn_implementation=eager; if that is refused as well, the parent's forward does not obey its attention "
    "mask"
)


class SelfCheck(Callback):
    """Runs the checks as training begins; `seconds` is what they cost."""

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
        row = trainer.datamodule.validation_rows[0]
        training = denoiser.training
        denoiser.eval()
        with trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
            passed = check(denoiser, row.x0, "16" in trainer.precision, untrained) + passed
        denoiser.train(training)
        self.seconds = time.perf_counter() - began
        if trainer.is_global_zero:
            print(f"self-check: {'; '.join(passed)}")


def check(denoiser: Denoiser, text: Int[Tensor, " L"], half: bool, untrained: bool) -> list[str]:
    """Leak, parity and, of an `untrained` model, the AR limit, in the first, second and last block of a text; what
    passed, in words. `half`: forwards are in 16 bits. Raises `ValueError` at the first violation."""
    blocks = probed(denoiser, len(text))
    for block in blocks:
        check_leak(denoiser, Probe.of(denoiser, text, block), half)
        check_parity(denoiser, Probe.of(denoiser, text, block, partly=True), half)
    passed = [f"no leak in block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))}", "decoding scores as training"]
    if untrained and is_ar_limit(denoiser):
        check_ar_limit(denoiser, Probe.of(denoiser, text, blocks[-1]), half)
        passed.append("blocks of one token are the parent")
    return passed


def probed(denoiser: Denoiser, length: int) -> list[int]:
    """The numbers of the blocks that are probed in a text of `length` tokens."""
    size = denoiser.pattern.block_size
    last = max(min(length, LONGEST) // size, 1) - 1
    nothing_to_hide = {0} if size == 1 and denoiser.token_shift else set()  # position 0 is not scored then
    return sorted({0, min(1, last), last} - nothing_to_hide)


@dataclass(frozen=True)
class Probe:
    """Some tokens of text, of which those from `begin` to `end` are hidden: of one block."""

    x0: Int[Tensor, "1 L"]
    begin: int
    end: int

    @classmethod
    def of(cls, denoiser: Denoiser, text: Int[Tensor, " L"], block: int, partly: bool = False) -> Probe:
        """A text up to the block after `block`, which is hidden, or `partly` its second half alone."""
        size = denoiser.pattern.block_size
        begin, end = block * size + partly * (size // 2), (block + 1) * size
        # With the shift position 0 is never scored.
        return cls(text[None, : end + size][:, : len(text) // size * size], max(begin, int(denoiser.token_shift)), end)

    def inputs(self, denoiser: Denoiser) -> ModelInputs:
        """What training reads, with nothing left out."""
        x0 = self.x0
        masked = torch.zeros_like(x0, dtype=torch.bool)
        masked[:, self.begin : self.end] = True
        position = torch.arange(x0.shape[1])[None]
        batch = Batch(x0, torch.ones_like(masked), torch.zeros_like(x0), position)
        noised = Noised(torch.where(masked, denoiser.mask_id, x0), masked, masked.float())
        return denoiser.inputs(batch, noised)[0]

    def logits(self, denoiser: Denoiser) -> Float[Tensor, "N V"]:
        """What training computes of the hidden tokens."""
        return denoiser(self.inputs(denoiser).to(denoiser.model.device))

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
    other = probe.changed(slice(probe.begin, end), denoiser.mask_id)
    far = distance(other.logits(denoiser), probe.logits(denoiser))
    if far > allowed(denoiser, half):
        name = type(denoiser.pattern).__name__
        seen = lets_through(probe.inputs(denoiser), other.inputs(denoiser))
        raise violation(
            denoiser,
            f"what it predicts of hidden position {probe.begin} and those after it changes by {far:.2g} with their "
            "tokens or with later blocks: it would learn to copy",
            f"The pattern lets them be seen: mend {name}.allowed" if seen else OF_PARENT,
        )


def lets_through(before: ModelInputs, after: ModelInputs) -> bool:
    """Whether the pattern itself leads from a row that is scored to one whose token differs."""
    rows, need = before.rows[0], torch.zeros(before.input_ids.shape[1], dtype=torch.bool)
    need[before.scored] = True
    sees = before.pattern.visible(rows[:, None], rows[None])
    while not torch.equal(grown := need | sees[need].any(0), need):
        need = grown
    return bool((need & (before.input_ids != after.input_ids)[0]).any())


def check_parity(denoiser: Denoiser, probe: Probe, half: bool) -> None:
    prompt = probe.x0[0, : probe.begin].tolist()
    if not prompt:  # nothing to go on from
        return
    training = replace(probe, x0=probe.x0[:, : probe.end]).logits(denoiser)
    canvas = Canvas(denoiser, Request([prompt], probe.end - probe.begin), [0], probe.end)
    far = distance(forward(denoiser, canvas), training)
    if far > allowed(denoiser, half):
        raise violation(
            denoiser,
            f"decoding scores position {probe.begin} and the rest of its block otherwise than training, by {far:.2g}",
            f"Either training sees what decoding does not have, such as noisy earlier blocks. Or else: {OF_PARENT}",
        )


def is_ar_limit(denoiser: Denoiser) -> bool:
    """Whether an untrained denoiser is its parent: blocks of one token, which see all earlier ones and no later one."""
    pattern = denoiser.pattern
    if not (pattern.block_size == 1 and pattern.cacheable and denoiser.token_shift):
        return False
    rows = rows_at(pattern, torch.arange(LONGEST))
    seen = pattern.visible(rows[:, None], rows[None])
    return bool((seen.sum(1) > rows.position).all())  # itself, and every earlier token in one stream


def check_ar_limit(denoiser: Denoiser, probe: Probe, half: bool) -> None:
    parent = Denoiser(denoiser.model, AR(), denoiser.mask_id, True, denoiser.layer_types)
    far = distance(probe.logits(denoiser), probe.logits(parent))
    if far > allowed(denoiser, half):
        what = f"with blocks of one token it is not its parent, by {far:.2g}: NELBO < NLL is possible"
        raise violation(denoiser, what, OF_PARENT)


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


def violation(denoiser: Denoiser, what: str, remedy: str) -> ValueError:
    pattern, model = type(denoiser.pattern).__name__, denoiser.model.config.model_type
    return ValueError(
        f"self-check: {model} under the attention pattern {pattern} cannot be converted: {what}. Nothing was trained. "
        f"{remedy}"
    )
