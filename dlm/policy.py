"""Learn a commit policy from a finished run's own decoding: `python -m dlm.policy run=ID [option=value]`.

The run decodes validation prompts one token per step. At every step each masked position has a prediction, and at the
end it is known whether this is the token that was finally committed there. A classifier learns to predict this from
features of the prediction alone (`dlm.decoding.policy`). It is evaluated on held-out prompts. The result, which is
numbers only, is stored in the run's folder as `measurements/policy-<digest of the settings>.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
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
from dlm.config.kinds import require_options
from dlm.config.loggers import logging_again
from dlm.config.settings import Policy
from dlm.data import tasks
from dlm.decoding.base import Decoder
from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import MostConfident
from dlm.decoding.policy import FEATURES, Classifier, features
from dlm.evaluation.generation import prompts_of
from dlm.evaluation.items import added_version, items_version
from dlm.evaluation.results import send_measurements
from dlm.model.denoiser import Denoiser
from dlm.model.device import AUTO, device_name
from dlm.model.eos import eos_ids
from dlm.runs.digest import FILE_DIGITS, digest, weights_fingerprint
from dlm.runs.run import Run, environment
from dlm.runs.storage import read_json
from dlm.types import generator

BINS = 10


@dataclass(frozen=True)
class Predictions:
    """M predictions of masked tokens: their F features, whether each was `kept` (equals the token finally committed),
    and the index of its prompt."""

    x: Float[np.ndarray, "M F"]
    kept: Bool[np.ndarray, " M"]
    prompt: Int[np.ndarray, " M"]

    def of(self, prompts: set[int]) -> Predictions:
        """The predictions for some of the prompts."""
        selected = np.isin(self.prompt, list(prompts))
        return Predictions(self.x[selected], self.kept[selected], self.prompt[selected])


class RecordingRule(MostConfident):
    """Commits one token per step; `token` and `features` hold the predictions of the last forward."""

    def sample(self, logits, generator):
        token, confidence = super().sample(logits, generator)
        self.token, self.features = token[0], features(logits, token)[0]
        return token, confidence


def observe(denoiser: Denoiser, request: Request) -> Predictions:
    """Decode the prompts of a request and collect all predictions, except those behind the end of an answer."""
    images = request.images or [None] * len(request.prompts)
    alone = [
        replace(request, prompts=[prompt], images=[image])
        for prompt, image in zip(request.prompts, images, strict=True)
    ]
    by_prompt = [observe_prompt(denoiser, one) for one in alone]
    x, kept = (torch.cat(parts).numpy() for parts in zip(*by_prompt, strict=True))
    return Predictions(x, kept, np.repeat(np.arange(len(alone)), [len(kept) for _, kept in by_prompt]))


def observe_prompt(denoiser: Denoiser, request: Request) -> tuple[Float[torch.Tensor, "M F"], Bool[torch.Tensor, " M"]]:
    """Decode the one prompt of a request. Returns the features of every prediction and whether it was kept."""
    rule, size, steps = RecordingRule(), denoiser.pattern.block_size, []
    (prompt,) = request.prompts
    start = denoiser.pattern.block_end(len(prompt), given=len(prompt)) - size

    def on_step(canvas: Canvas) -> None:
        nonlocal start
        offset = canvas.predicted[0].nonzero()[:, 0]
        rows = offset if len(rule.token) == size else slice(None)  # with fixed shapes, all positions are scored
        steps.append([t.cpu() for t in (start + offset - len(prompt), rule.token[rows], rule.features[rows])])
        start = int(canvas.start[0])

    # A `stop` prevents steps from being replayed as CUDA graphs, which would record nothing.
    request = replace(request, stop=lambda tokens: False, on_step=on_step)
    (generation,) = Decoder(Blocks(), rule).generate(denoiser, request)
    position, token, x = (torch.cat(parts) for parts in zip(*steps, strict=True))
    inside = position < len(generation.tokens)
    return x[inside], token[inside] == torch.tensor(generation.tokens)[position[inside]]


def split(num_prompts: int, held_out: float, seed: int) -> tuple[set[int], set[int]]:
    """Draw the indices of the prompts to fit to and of a fraction `held_out` to measure on. Raises `ValueError` if
    either is empty."""
    count = round(num_prompts * held_out)
    if not 0 < count < num_prompts:
        raise ValueError(
            f"held_out {held_out} of {num_prompts} prompts leaves none to fit to or none to measure on: choose a "
            "fraction between 0 and 1, or more items_per_family"
        )
    order = torch.randperm(num_prompts, generator=generator(seed)).tolist()
    return set(order[count:]), set(order[:count])


def fit(predictions: Predictions) -> Classifier:
    """Fit a logistic regression on standardised features. Raises `ValueError` if all predictions were kept, or none."""
    if predictions.kept.all() or not predictions.kept.any():
        raise ValueError(
            f"all {len(predictions.kept)} predictions were {'kept' if predictions.kept.all() else 'changed'}, so there "
            "is nothing to learn: raise items_per_family, or decode with decoding=threshold"
        )
    scaler = StandardScaler().fit(predictions.x)
    # With so many predictions, the weights need no penalty except to stay finite if the classes are separable.
    logistic = LogisticRegression(C=1e3, max_iter=1000).fit(scaler.transform(predictions.x), predictions.kept)
    coefficients = logistic.coef_[0] / scaler.scale_
    return Classifier(coefficients.tolist(), float(logistic.intercept_[0] - coefficients @ scaler.mean_))


def quality(classifier: Classifier, predictions: Predictions) -> dict[str, Any]:
    """How well a classifier predicts `kept`: its `auc` and that of the probability alone (the criterion of
    decoding=threshold), the Brier score, and its calibration, the mean prediction and the fraction kept in bins of the
    prediction. AUC is None if all or none were kept."""
    predicted = classifier(torch.from_numpy(predictions.x)).numpy()
    probability = predictions.x[:, FEATURES.index("probability")]
    has_both_classes = 0 < predictions.kept.mean() < 1
    bins = np.minimum((predicted * BINS).astype(int), BINS - 1)
    return {
        "predictions": len(predictions.kept),
        "prompts": len(set(predictions.prompt.tolist())),
        "kept": float(predictions.kept.mean()),
        "auc": float(roc_auc_score(predictions.kept, predicted)) if has_both_classes else None,
        "auc_of_probability": float(roc_auc_score(predictions.kept, probability)) if has_both_classes else None,
        "brier": float(brier_score_loss(predictions.kept, predicted)),
        "calibration": [
            {"predicted": float(predicted[b].mean()), "kept": float(predictions.kept[b].mean()), "n": int(b.sum())}
            for b in (bins == i for i in np.unique(bins))
        ],
    }


def learn(run: Run, settings: dict[str, Any], device: str = AUTO) -> Path:
    """Fit a run's policy, decoding on a device, and return its file. An existing file for the same weights, settings
    and items is kept."""
    path = run.folder / "measurements" / f"policy-{digest(settings, FILE_DIGITS)}.json"
    finished = FinishedRun(run, device)
    key = {
        "weights": weights_fingerprint(finished.folder),
        "items": items_version() + added_version(finished.asked),
    }
    if path.exists() and key.items() <= read_json(path).items():
        return path
    examples = tasks.evaluation_set("val", settings["items_per_family"], families=finished.asked)
    fitted, held_out = split(len(examples), settings["held_out"], settings["seed"])
    prompts, images = zip(*prompts_of(finished.converted.reader, examples), strict=True)
    ends = eos_ids(finished.dlm.model, finished.converted.tokenizer)
    predictions = observe(finished.dlm, Request(list(prompts), settings["max_new_tokens"], ends, images=images))
    classifier = fit(predictions.of(fitted))
    path.parent.mkdir(exist_ok=True)
    classifier.save(
        path,
        run=run.id,
        **key,
        settings=settings,
        fitted=quality(classifier, predictions.of(fitted)),
        held_out=quality(classifier, predictions.of(held_out)),
        **environment(device_name(finished.device)),
    )
    return path


@hydra_command("policy")
def main(cfg: DictConfig) -> None:
    require_options(cfg, "policy", Policy)
    settings = {name: cfg[name] for name in ("items_per_family", "max_new_tokens", "held_out", "seed")}
    run = Run.load(str(cfg.run), cfg.runs_dir)
    path = learn(run, settings, cfg.device)
    learned = read_json(path)
    with logging_again(run, cfg.get("logger")) as loggers:
        send_measurements(loggers, run, {path.name: {name: learned[name] for name in ("fitted", "held_out")}})
    print(json.dumps(learned["held_out"], indent=1))
    print(f"{path}: use it with decoding=policy decoding.policy={path}")


if __name__ == "__main__":
    main()
