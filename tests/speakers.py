"""The embedded parent as an AR and as a diffusion model that answer, in tests."""

from dlm.attention.block import Block
from dlm.config.build import ar_denoiser
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.model.denoiser import Denoiser
from dlm.watch.speaker import Speaker

PROMPT, NEW_TOKENS = "reverse:ABCDEFG=", 16


def dlm(parent, decoder=None, token_shift=True, block_size=8) -> Speaker:
    """The parent as a block diffusion model: untrained, but it answers."""
    scorer = Denoiser(parent.model, Block(block_size), parent.mask_id, token_shift, parent.layer_types)
    return Speaker("dLM", scorer, parent.tokenizer, decoder or Threshold(0.5))


def ar(parent) -> Speaker:
    return Speaker("parent (AR)", ar_denoiser(parent), parent.tokenizer, Fixed(1))


def answer(speaker: Speaker, prompt=PROMPT, stops=(), seed=0, on_frame=None):
    return speaker.answer(speaker.encode(prompt, NEW_TOKENS), NEW_TOKENS, list(stops), seed, on_frame)
