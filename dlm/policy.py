"""Learn a commit policy from a finished run's own decoding: `python -m dlm.policy run=ID [option=value]`.

The run decodes validation prompts one token per step, the most careful way it has. At every step each masked position
has a prediction, and at the end it is known whether that prediction is the token that was committed there. A classifier
learns this from what can be seen of the prediction alone (`dlm.decoding.policy`). It is measured on prompts that it was
not fitted to. The result lies in the run's folder, `measurements/policy-<digest of the settings>.json`: numbers only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from omegaconf import DictConfig
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from dlm.config.command_line import hydra_command
from dlm.config.finished import FinishedRun
from dlm.config.kinds import require_kinds
from dlm.config.settings import Policy
from dlm.data import tasks
from dlm.decoding.base import Decoder
from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import MostConfident
from dlm.decoding.policy import FEATURES, Classifier, features
from dlm.evaluation.generation import prompt_ids
from dlm.evaluation.items import items_version
from dlm.model.denoiser import Denoiser
from dlm.model.eos import eos_ids
from dlm.runs.digest import FILE_DIGITS, digest, weights_fingerprint
from dlm.runs.run import Run, environment
from dlm.runs.storage import read_json
from dlm.types import generator

BINS = 10


@dataclass(frozen=True)
class Predictions:
    """Predictions of masked tokens: their features, whether they were `kept`, and the number of their prompt."""

    x: Float[np.ndarray, "M F"]
    kept: Bool[np.ndarray, " M"]
    prompt: Int[np.ndarray, " M"]

    def of(self, prompts: set[int]) -> Predictions:
        chosen = np.isin(self.prompt, list(prompts))
        return Predictions(self.x[chosen], self.kept[chosen], self.prompt[chosen])


class Watched(MostConfident):
    """One token per step; `features` and `token` are those of the predictions of the last forward."""

    def sample(self, logits, generator):
        token, confidence = super().sample(logits, generator)
        self.token, self.features = token[0], features(logits, token)[0]
        return token, confidence


def observe(
    denoiser: Denoiser, prompts: list[list[int]], max_new_tokens: int, eos_id: int | list[int] | None
) -> Predictions:
    """Every prediction that is made in the decoding of the prompts; those behind the end of an answer do not count."""
    found = [followed(denoiser, prompt, max_new_tokens, eos_id) for prompt in prompts]
    x, kept = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return Predictions(x, kept, np.repeat(np.arange(len(prompts)), [len(seen) for seen, _ in found]))


def followed(
    denoiser: Denoiser, prompt: list[int], max_new_tokens: int, eos_id: int | None
) -> tuple[Float[torch.Tensor, "M F"], Bool[torch.Tensor, " M"]]:
    """The features of every prediction in the decoding of a prompt, and whether it was kept."""
    rule, size, steps = Watched(), denoiser.pattern.block_size, []
    start = len(prompt) // size * size

    def on_step(canvas: Canvas) -> None:
        nonlocal start
        offset = canvas.predicted[0].nonzero()[:, 0]
        rows = offset if len(rule.token) == size else slice(None)  # with fixed shapes all positions are scored
        steps.append([t.cpu() for t in (start + offset - len(prompt), rule.token[rows], rule.features[rows])])
        start = int(canvas.start[0])

    # With a `stop` no step is replayed as a CUDA graph, in which nothing could be recorded.
    request = Request([prompt], max_new_tokens, eos_id, stop=lambda tokens: False, on_step=on_step)
    (made,) = Decoder(Blocks(), rule).generate(denoiser, request)
    place, token, x = (torch.cat(parts) for parts in zip(*steps, strict=True))
    inside = place < len(made.tokens)
    return x[inside], token[inside] == torch.tensor(made.tokens)[place[inside]]


def split(num_prompts: int, held_out: float, seed: int) -> tuple[set[int], set[int]]:
    """The prompts to fit to and those to measure on."""
    count = round(num_prompts * held_out)
    if not 0 < count < num_prompts:
        raise ValueError(
            f"held_out {held_out} of {num_prompts} prompts leaves none to fit to or none to measure on: choose a "
            "fraction between 0 and 1, or more items_per_family"
        )
    order = torch.randperm(num_prompts, generator=generator(seed)).tolist()
    return set(order[count:]), set(order[:count])


def fit(seen: Predictions) -> Classifier:
    """Logistic regression, on features of equal spread; `ValueError` where there is nothing to tell apart."""
    if seen.kept.all() or not seen.kept.any():
        raise ValueError(
            f"all {len(seen.kept)} predictions were {'kept' if seen.kept.all() else 'changed'}, so there is nothing to "
            "learn: raise items_per_family, or decode with decoding=threshold"
        )
    scaler = StandardScaler().fit(seen.x)
    # So many predictions need no penalty on the weights, only finite ones where the two kinds are separable.
    logistic = LogisticRegression(C=1e3, max_iter=1000).fit(scaler.transform(seen.x), seen.kept)
    coefficients = logistic.coef_[0] / scaler.scale_
    return Classifier(coefficients.tolist(), float(logistic.intercept_[0] - coefficients @ scaler.mean_))


def quality(classifier: Classifier, seen: Predictions) -> dict[str, Any]:
    """How well it tells what is kept: `auc` (and that of the probability alone, which decoding=threshold goes by), the
    Brier score, and in bins of its prediction the mean prediction and the fraction that was kept. AUC is None where all
    or none were kept."""
    predicted = classifier(torch.from_numpy(seen.x)).numpy()
    probability = seen.x[:, FEATURES.index("probability")]
    two = 0 < seen.kept.mean() < 1
    bins = np.minimum((predicted * BINS).astype(int), BINS - 1)
    return {
        "predictions": len(seen.kept),
        "prompts": len(set(seen.prompt.tolist())),
        "kept": float(seen.kept.mean()),
        "auc": float(roc_auc_score(seen.kept, predicted)) if two else None,
        "auc_of_probability": float(roc_auc_score(seen.kept, probability)) if two else None,
        "brier": float(brier_score_loss(seen.kept, predicted)),
        "calibration": [
            {"predicted": float(predicted[b].mean()), "kept": float(seen.kept[b].mean()), "n": int(b.sum())}
            for b in (bins == i for i in np.unique(bins))
        ],
    }


def learn(run: Run, settings: dict[str, Any]) -> Path:
    """Fit a run's policy, unless its weights have one with these settings and items already, and return its file."""
    path = run.folder / "measurements" / f"policy-{digest(settings, FILE_DIGITS)}.json"
    finished = FinishedRun(run)
    key = {"weights": weights_fingerprint(finished.folder), "items": items_version()}
    if path.exists() and key.items() <= read_json(path).items():
        return path
    examples = tasks.evaluation_set("val", settings["items_per_family"])
    fitted, held_out = split(len(examples), settings["held_out"], settings["seed"])
    tokenizer = finished.converted.tokenizer
    prompts = prompt_ids(tokenizer, examples)
    seen = observe(finished.dlm, prompts, settings["max_new_tokens"], eos_ids(finished.dlm.model, tokenizer))
    classifier = fit(seen.of(fitted))
    path.parent.mkdir(exist_ok=True)
    classifier.save(
        path,
        run=run.id,
        **key,
        settings=settings,
        fitted=quality(classifier, seen.of(fitted)),
        held_out=quality(classifier, seen.of(held_out)),
        **environment(),
    )
    return path


@hydra_command("policy")
def main(cfg: DictConfig) -> None:
    require_kinds(cfg, Policy)
    settings = {name: cfg[name] for name in ("items_per_family", "max_new_tokens", "held_out", "seed")}
    path = learn(Run.load(str(cfg.run), cfg.runs_dir), settings)
    print(json.dumps(read_json(path)["held_out"], indent=1))
    print(f"{path}: use it with decoding=policy decoding.policy={path}")


if __name__ == "__main__":
    main()
