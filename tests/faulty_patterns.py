"""Attention patterns as a newcomer writes them: a right one, and the mistakes that are easily made."""

import torch

from dlm.attention.base import AttentionPattern
from dlm.attention.block import Block


class SinkAndWindow(Block):
    """`Block` that sees of the earlier blocks the last `window`, and the first `sink` tokens of the document."""

    blockwise = False  # the sink may end within a block

    def __init__(self, block_size, window=2, sink=2, noise_per=None):
        super().__init__(block_size, noise_per)
        self.window, self.sink = window, sink

    def allowed(self, q, k):
        near = (self.block(q) - self.block(k) <= self.window) | (k.position < self.sink)
        return super().allowed(q, k) & near


class SeesItself(Block):
    """The noisy stream sees its own clean block, too."""

    def allowed(self, q, k):
        return super().allowed(q, k) | (~q.clean & k.clean & (self.block(q) == self.block(k)))


class SeesItselfFromBlock2(Block):
    """The same, but not in the first two blocks."""

    def allowed(self, q, k):
        own = ~q.clean & k.clean & (self.block(q) == self.block(k))
        return super().allowed(q, k) | (own & (self.block(q) >= 2))


class LooksAhead(Block):
    """Blocks see the clean stream of the next block."""

    def allowed(self, q, k):
        return super().allowed(q, k) | (k.clean & (self.block(k) == self.block(q) + 1))


class SinkOfAnyBlock(Block):
    """A sink of two tokens that forgets to be of an earlier block."""

    blockwise = False

    def allowed(self, q, k):
        return super().allowed(q, k) | (k.clean & (k.position < 2))


class LooksInside(Block):
    """It looks at positions inside a block, though `blockwise` is as it was: a window of three tokens."""

    def allowed(self, q, k):
        return super().allowed(q, k) & ((q.position - k.position < 3) | (self.block(q) == self.block(k)))


class NotCausal(Block):
    """It says that its clean stream is causal, so that it would be scored as an AR model."""

    clean_causal = True


class Blind(Block):
    """A clean row sees earlier blocks only, and in the first block nothing."""

    def allowed(self, q, k):
        return super().allowed(q, k) & ~(q.clean & (self.block(q) == self.block(k)))


class CleanSeesNoisy(Block):
    """Its clean stream looks at the masks of earlier blocks."""

    def allowed(self, q, k):
        return super().allowed(q, k) | (q.clean & ~k.clean & (self.block(k) < self.block(q)))


class NoisyContext(Block):
    """A noisy block sees the earlier ones as corrupted, too, which decoding does not keep."""

    def allowed(self, q, k):
        return super().allowed(q, k) | (~q.clean & ~k.clean & (self.block(k) < self.block(q)))


class NarrowEnvelope(Block):
    """Its envelope leaves out the first block, which it sees."""

    def envelope(self, q, k):
        return self.allowed(q, k) & ((self.block(k) > 0) | (self.block(q) == 0))


class CachedFuture(AttentionPattern):
    """Everything sees everything, and blocks are cached all the same."""

    def allowed(self, q, k):
        return torch.ones_like(q.clean & k.clean)


class Numbers(Block):
    """It answers with numbers."""

    def allowed(self, q, k):
        return super().allowed(q, k).float()


# What is said of each.
FAULTS = {
    SeesItself: "noisy position 0 leaks: it is to predict its block, and sees clean position 0",
    SeesItselfFromBlock2: "leaks: it is to predict its block",
    LooksAhead: "noisy position 0 leaks",
    SinkOfAnyBlock: "noisy position 0 leaks",
    LooksInside: "set blockwise = False, or give an envelope",
    NotCausal: "clean position 0 sees the later token of clean position 1. .* clean_causal = False",
    Blind: "clean position 0 does not see itself",
    CleanSeesNoisy: "sees, unlike in decoding, noisy position 0",
    NoisyContext: "earlier blocks are seen in the clean stream",
    NarrowEnvelope: "let NarrowEnvelope.envelope cover it",
    CachedFuture: "sees the later block of noisy position .* cacheable = False",
    Numbers: r"allowed gives torch.float32. .* booleans",
}
