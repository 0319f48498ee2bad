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
from dlm.decoding.fixed import Fixed
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


class Recorder(Fixed):
    """One token per step of a single sequence. `steps` has for each forward the offsets in the block of the predictions
    it made, their tokens and their features."""

    def __init__(self):
        super().__init__(tokens_per_step=1)
        self.steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def sample(self, logits, generator):
        token, confidence = super().sample(logits, generator)
        self.made = token[0], confidence[0], features(logits, token)[0]
        return token, confidence

    def select(self, confidence, rank):
        token, own, x = self.made
        offset = (confidence[0] >= 0).nonzero()[:, 0]
        if len(token) == confidence.shape[1]:  # all positions of the block were asked for, open or not
            token, own, x = (t[offset] for t in self.made)
        offset = offset[len(offset) - len(token) :]
        # With the token shift, the score of a block's first token is an earlier forward's.
        fresh = own.to(confidence.dtype) == confidence[0, offset]
        self.steps.append((offset[fresh], token[fresh], x[fresh]))
        return super().select(confidence, rank)


def observe(
    denoiser: Denoiser, prompts: list[list[int]], max_new_tokens: int, eos_id: int | list[int] | None
) -> Predictions:
    """Every prediction that is made in the decoding of the prompts; those behind the end of an answer do not count."""
    size, found = denoiser.pattern.block_size, ([], [], [])
    for number, prompt in enumerate(prompts):
        recorder, starts = Recorder(), [len(prompt) // size * size]
        (made,) = recorder.generate(
            denoiser,
            [prompt],
            max_new_tokens,
            eos_id,
            stop=lambda tokens: False,  # with a stop no step is replayed as a CUDA graph, where nothing is recorded
            on_step=lambda canvas, starts=starts: starts.append(int(canvas.start[0])),
        )
        final = torch.tensor(made.tokens)
        for start, (offset, token, x) in zip(starts[:-1], recorder.steps, strict=True):
            place = (start + offset - len(prompt)).cpu()
            inside = place < len(final)
            found[0].append(x.cpu()[inside])
            found[1].append(token.cpu()[inside] == final[place[inside]])
            found[2].append(torch.full((int(inside.sum()),), number))
    return Predictions(*(torch.cat(parts).numpy() for parts in found))


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
