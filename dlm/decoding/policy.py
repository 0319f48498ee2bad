"""A commit rule that was learned from the model's own decoding (Nemotron-Labs-Diffusion's sampler, arXiv 2607.05722, in
the smallest form): commit what will probably not change any more, which is not always what is most probable."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.rule import wide
from dlm.decoding.threshold import AboveThreshold
from dlm.errors import one_line
from dlm.runs.storage import read_json, write_json

FEATURES = ("probability", "margin", "entropy", "log_ratio")
MAKE = "make one with python -m dlm.policy run=ID, which prints its path"
MOST = 50.0  # nats; a log-ratio that is this large is certainty


def features(logits: Float[Tensor, "*shape V"], token: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape F"]:
    """What a prediction looks like: the token's probability, how far it is above the best other one, the entropy of the
    prediction in nats, and the logarithm of the ratio of the two probabilities."""
    log_p = logits.log_softmax(-1, dtype=wide(logits))
    own = log_p.gather(-1, token[..., None])
    other = log_p.scatter(-1, token[..., None], -torch.inf).amax(-1, keepdim=True)
    entropy = torch.special.entr(log_p.exp()).sum(-1, keepdim=True)
    return torch.cat([own.exp(), own.exp() - other.exp(), entropy, (own - other).clamp(-MOST, MOST)], -1)


@dataclass(frozen=True)
class Classifier:
    """Logistic regression on `FEATURES`: the probability that a prediction is kept."""

    coefficients: list[float]
    intercept: float

    def __call__(self, x: Float[Tensor, "*shape F"]) -> Float[Tensor, "*shape"]:
        # Numbers, not a tensor, so that a CUDA graph can be recorded.
        terms = (c * feature for c, feature in zip(self.coefficients, x.unbind(-1), strict=True))
        return sum(terms, self.intercept).sigmoid()

    def save(self, path: Path, **about: Any) -> None:
        """As JSON: the numbers, the names of the features, and whatever else is to be known of it."""
        write_json(path, {"features": list(FEATURES), **asdict(self), **about})

    @classmethod
    def load(cls, path: str | None) -> Classifier:
        """`ValueError`, with the command that makes one, where there is none or it is none of ours."""
        if path is None:
            raise ValueError(f"decoding.policy is not set, and decoding=policy has no rule without it: {MAKE}")
        try:
            found = read_json(Path(path).expanduser())
            made = cls(found["coefficients"], found["intercept"])
            numbers = [*made.coefficients, made.intercept]
            if found["features"] != list(FEATURES) or len(numbers) != len(FEATURES) + 1:
                raise ValueError(f"its features are {found['features']}, not {list(FEATURES)}")
            if not all(isinstance(n, float) and math.isfinite(n) for n in numbers):
                raise ValueError("its coefficients are not finite numbers")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"decoding.policy {str(path)!r} holds no commit policy ({one_line(error)}): {MAKE}"
            ) from error
        return made


class ExpectedToStay(AboveThreshold):
    """Commits all positions whose predicted probability of being kept exceeds `threshold`; at 1 or above, one token per
    step. That probability is the confidence of this rule: it orders the positions, too."""

    def __init__(self, classifier: Classifier, threshold: float, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(threshold, temperature, top_p)
        self.classifier = classifier

    def confidence(self, logits, token):
        return self.classifier(features(logits, token))


class Policy(Decoder):
    """One block after another, by a trained classifier, which the file `policy` holds."""

    def __init__(
        self,
        policy: str | None,
        threshold: float,
        sliding: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ):
        rule = ExpectedToStay(Classifier.load(policy), threshold, temperature, top_p)
        super().__init__(Blocks(sliding), rule)
