"""Checks of a conversion on the real parent and a real text: a few forwards of one row, with its first, second and last
block hidden in turn. (`dlm.attention.check` checks the pattern's predicate when it is built.)

    no leak      the logits of a hidden token depend neither on its clean value nor on a later block      (I4)
    parity       training scores a partly masked block as decoding with a cached clean prefix does        (I3)
    AR limit     with blocks of one token and the token shift, NELBO = NLL of the parent                  (I1)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.attention.ar import AR
from dlm.attention.check import rows_at
from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.step import forward
from dlm.model.closeness import distance, tolerance
from dlm.model.denoiser import Denoiser
from dlm.types import Batch, Images, ModelInputs, Noised

LONGEST = 1024  # tokens of the text: without a compiled kernel, the attention matrix is dense
OF_PARENT = (
    "Try model.attn_implementation=eager; if that is refused as well, the parent's forward does not obey its attention "
    "mask"
)


def check_row(denoiser: Denoiser, row: Batch, half: bool, untrained: bool) -> list[str]:
    """`check` the text of a row of training and, where it has images, parity in an answer to them."""
    passed, pictured = check(denoiser, text_of(row), half, untrained), Probe.pictured(denoiser, row)
    if pictured is not None:
        check_parity(denoiser, pictured, half)
        passed.append("an image is read in decoding as in training")
    return passed


def text_of(row: Batch) -> Int[Tensor, " L"]:
    """As many tokens as a row has: its own or, where some of these stand for images, those of its answers."""
    if not row.images:
        return row.x0
    answers = row.x0[row.maskable]
    return answers.repeat(-(-len(row.x0) // max(len(answers), 1)))[: len(row.x0)]


def check(denoiser: Denoiser, text: Int[Tensor, " L"], half: bool, untrained: bool) -> list[str]:
    """Check for leaks, parity and, if the model is `untrained`, the AR limit, in the first, second and last block of a
    text. `half`: forwards are in 16 bits. Returns the passed checks in words; raises `ValueError` at the first
    violation."""
    blocks = probed_blocks(denoiser, len(text))
    for block in blocks:
        check_leak(denoiser, Probe.of(denoiser, text, block), half)
        check_parity(denoiser, Probe.of(denoiser, text, block, partly=True), half)
    passed = [f"no leak in block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))}", "decoding scores as training"]
    if untrained and is_ar_limit(denoiser):
        check_ar_limit(denoiser, Probe.of(denoiser, text, blocks[-1]), half)
        passed.append("blocks of one token are the parent")
    return passed


def probed_blocks(denoiser: Denoiser, length: int) -> list[int]:
    """The indices of the blocks to probe in a text of `length` tokens."""
    size = denoiser.pattern.block_size
    last = max(min(length, LONGEST) // size, 1) - 1
    without_score = {0} if size == 1 and denoiser.token_shift else set()  # the token shift never scores position 0
    return sorted({0, min(1, last), last} - without_score)


@dataclass(frozen=True)
class Probe:
    """A text `x0` in which the tokens [begin, end) of one block are hidden; earlier ones may stand for `images`."""

    x0: Int[Tensor, "1 L"]
    begin: int
    end: int
    images: Images | None = None

    @classmethod
    def of(cls, denoiser: Denoiser, text: Int[Tensor, " L"], block: int, partly: bool = False) -> Probe:
        """The text up to the end of the block after `block`, with `block` hidden, or only its second half if
        `partly`."""
        pattern, first = denoiser.pattern, int(denoiser.token_shift)  # which never scores position 0
        size = pattern.block_size
        begin = max(block * size + partly * (size // 2), first)
        if pattern.block_end(begin, given=begin) > len(text):
            begin = max(begin - size, first)
        end = pattern.block_end(begin, given=begin)
        return cls(text[None, : end + (len(text) - end) // size * size][:, : end + size], begin, end)

    @classmethod
    def pictured(cls, denoiser: Denoiser, row: Batch) -> Probe | None:
        """The first document with images of a row, up to the end of the block in which its answer begins, with what the
        block has of the answer hidden. None if there is none, or not up to the end of the block."""
        for number, images in (row.images or ({},))[0].items():
            ids, maskable = row.x0[row.document == number], row.maskable[row.document == number]
            begin = int(maskable.int().argmax())
            end = denoiser.pattern.block_end(begin, given=begin)
            if begin and end <= len(ids):
                return cls(ids[None, :end], begin, end, images)
        return None

    def inputs(self, denoiser: Denoiser) -> ModelInputs:
        """The network input of training, without trimming."""
        x0 = self.x0
        masked = torch.zeros_like(x0, dtype=torch.bool)
        masked[:, self.begin : self.end] = True
        position = torch.arange(x0.shape[1])[None]
        images = None if self.images is None else ({0: self.images},)
        batch = Batch(x0, position >= self.begin, torch.zeros_like(x0), position, images=images)
        noised = Noised(torch.where(masked, denoiser.mask_id, x0), masked, masked.float())
        return denoiser.inputs(batch, noised)[0]

    def logits(self, denoiser: Denoiser) -> Float[Tensor, "N V"]:
        """The logits of the N hidden tokens, as training computes them."""
        return denoiser(self.inputs(denoiser).to(denoiser.model.device))

    def changed(self, positions: slice, mask_id: int) -> Probe:
        """The probe with another token at every one of `positions`: the reversed slice, or, where that agrees with the
        original, the first token of the text."""
        x0, original = self.x0.clone(), self.x0[:, positions]
        replacement = torch.where(original.flip(1) == original, self.x0[:, :1], original.flip(1))
        # A text of one repeated token has no other token; any id but this one and the mask will do.
        spare = next(i for i in range(3) if i not in (mask_id, int(self.x0[0, 0])))
        x0[:, positions] = torch.where(replacement == original, spare, replacement)
        return replace(self, x0=x0)


def check_leak(denoiser: Denoiser, probe: Probe, half: bool) -> None:
    """Raises `ValueError` if the logits of hidden tokens change with their clean values or with later blocks."""
    end = probe.x0.shape[1] if denoiser.pattern.cacheable else probe.end
    other = probe.changed(slice(probe.begin, end), denoiser.mask_id)
    change = distance(other.logits(denoiser), probe.logits(denoiser))
    if change > max_distance(denoiser, half):
        name = type(denoiser.pattern).__name__
        leaks = pattern_leaks(probe.inputs(denoiser), other.inputs(denoiser))
        raise violation(
            denoiser,
            f"what it predicts of hidden position {probe.begin} and those after it changes by {change:.2g} with their "
            "tokens or with later blocks: it would learn to copy",
            f"The pattern lets them be seen: mend {name}.allowed" if leaks else OF_PARENT,
        )


def pattern_leaks(original: ModelInputs, changed: ModelInputs) -> bool:
    """Whether, through any number of layers, the pattern lets a scored row see a row whose token was changed."""
    rows, reached = original.rows[0], torch.zeros(original.input_ids.shape[1], dtype=torch.bool)
    reached[original.scored] = True
    visible = original.pattern.visible(rows[:, None], rows[None])
    while not torch.equal(grown := reached | visible[reached].any(0), reached):
        reached = grown
    return bool((reached & (original.input_ids != changed.input_ids)[0]).any())


def check_parity(denoiser: Denoiser, probe: Probe, half: bool) -> None:
    """Raises `ValueError` if decoding scores the hidden tokens otherwise than training."""
    prompt = probe.x0[0, : probe.begin].tolist()
    if not prompt:  # decoding needs a prompt
        return
    in_training = replace(probe, x0=probe.x0[:, : probe.end]).logits(denoiser)
    canvas = Canvas(denoiser, Request([prompt], probe.end - probe.begin, images=[probe.images]), [0], probe.end)
    gap = distance(forward(denoiser, canvas), in_training)
    if gap > max_distance(denoiser, half):
        raise violation(
            denoiser,
            f"decoding scores position {probe.begin} and the rest of its block otherwise than training, by {gap:.2g}",
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
    """Raises `ValueError` if a denoiser in the AR limit scores the hidden tokens otherwise than its parent."""
    types = denoiser.layer_types
    parent = Denoiser(denoiser.model, AR(), denoiser.mask_id, True, types, denoiser.span_ids)
    gap = distance(probe.logits(denoiser), probe.logits(parent))
    if gap > max_distance(denoiser, half):
        problem = f"with blocks of one token it is not its parent, by {gap:.2g}: NELBO < NLL is possible"
        raise violation(denoiser, problem, OF_PARENT)


def max_distance(denoiser: Denoiser, half: bool) -> float:
    """The largest tolerated distance between logits. `half`: Lightning computes in 16 bits, whatever the type of the
    weights."""
    return tolerance(torch.float16 if half else denoiser.model.dtype)


def violation(denoiser: Denoiser, problem: str, remedy: str) -> ValueError:
    """The error of a failed check."""
    pattern, model = type(denoiser.pattern).__name__, denoiser.model.config.model_type
    return ValueError(
        f"self-check: {model} under the attention pattern {pattern} cannot be converted: {problem}. Nothing was "
        f"trained. {remedy}"
    )
