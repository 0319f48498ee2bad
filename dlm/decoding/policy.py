"""A commit rule learned from the model's own decoding (Nemotron-Labs-Diffusion's sampler, arXiv 2607.05722, in its
smallest form): it commits the predictions that are unlikely to change, which are not always the most probable ones."""

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
MAX_LOG_RATIO = 50.0  # nats: as good as certain


def features(logits: Float[Tensor, "*shape V"], token: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape F"]:
    """The `FEATURES` of predictions: the probability of the token, its margin over the most probable other token, the
    entropy of the distribution in nats, and the logarithm of the ratio of the two probabilities in nats."""
    log_p = logits.log_softmax(-1, dtype=wide(logits))
    log_token = log_p.gather(-1, token[..., None])
    log_other = log_p.scatter(-1, token[..., None], -torch.inf).amax(-1, keepdim=True)
    entropy = torch.special.entr(log_p.exp()).sum(-1, keepdim=True)
    log_ratio = (log_token - log_other).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.cat([log_token.exp(), log_token.exp() - log_other.exp(), entropy, log_ratio], -1)


@dataclass(frozen=True)
class Classifier:
    """Logistic regression on `FEATURES`: the probability that a prediction is kept."""

    coefficients: list[float]
    intercept: float

    def __call__(self, x: Float[Tensor, "*shape F"]) -> Float[Tensor, "*shape"]:
        # Python numbers, not a tensor, so that a CUDA graph can be recorded.
        terms = (c * feature for c, feature in zip(self.coefficients, x.unbind(-1), strict=True))
        return sum(terms, self.intercept).sigmoid()

    def save(self, path: Path, **about: Any) -> None:
        """Write a JSON file with the coefficients, the names of the features, and the metadata `about`."""
        write_json(path, {"features": list(FEATURES), **asdict(self), **about})

    @classmethod
    def load(cls, path: str | None) -> Classifier:
        """Read a classifier that `save` wrote. Raises `ValueError` (naming the command that makes one) if `path` is
        None or not such a file."""
        if path is None:
            raise ValueError(f"decoding.policy is not set, and decoding=policy has no rule without it: {MAKE}")
        try:
            saved = read_json(Path(path).expanduser())
            classifier = cls(saved["coefficients"], saved["intercept"])
            numbers = [*classifier.coefficients, classifier.intercept]
            if saved["features"] != list(FEATURES) or len(numbers) != len(FEATURES) + 1:
                raise ValueError(f"its features are {saved['features']}, not {list(FEATURES)}")
            if not all(isinstance(n, float) and math.isfinite(n) for n in numbers):
                raise ValueError("its coefficients are not finite numbers")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"decoding.policy {str(path)!r} holds no commit policy ({one_line(error)}): {MAKE}"
            ) from error
        return classifier


class ExpectedToStay(AboveThreshold):
    """Commits all positions whose predicted probability of being kept exceeds `threshold`; at 1 or above, one token per
    step. This probability is the confidence of the rule, so it also orders the positions."""

    def __init__(self, classifier: Classifier, threshold: float, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(threshold, temperature, top_p)
        self.classifier = classifier

    def confidence(self, logits: Float[Tensor, "B K V"], token: Int[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        return self.classifier(features(logits, token))


class Policy(Decoder):
    """Decodes one block after another, by the trained classifier in the file `policy`."""

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
