"""How good a model's hidden states are as text embeddings (Efficient-DLM, Table 4): mean pooling of the last layer,
under a bidirectional mask for the dLM, causal for its parent; zero-shot.

A small offline suite with task types of MTEB, on held-out verses.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import bootstrap, spearmanr
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import v_measure_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from transformers import PreTrainedTokenizerBase

from dlm.attention.ar import AR
from dlm.attention.base import AttentionPattern
from dlm.attention.bidir import Bidir
from dlm.data import prose
from dlm.measurement.base import Measurement
from dlm.model.denoiser import Denoiser
from dlm.types import Rows

Embed = Callable[[list[str]], Float[np.ndarray, "N D"]]
CLASSES, RESAMPLES, MIN_WORDS = 10, 1000, 8


class Embedding(Measurement):
    """Each task on about `texts` texts, the same for every run."""

    def __init__(self, texts: int, batch_size: int):
        if texts < 2 * CLASSES:
            raise ValueError(f"measurement.texts {texts} must be at least {2 * CLASSES}, two of each class")
        self.texts, self.batch_size = texts, batch_size

    def __call__(self, subject):
        """For `dlm` and `ar` the `score` of every task with its `metric`, its 95 % interval (bootstrap over the texts;
        None where there is none) and its sample count `n`."""
        tokenizer = subject.converted.tokenizer
        found = {}
        for name, pattern in (("dlm", Bidir(1)), ("ar", AR())):
            denoiser = getattr(subject, name)

            def embed(texts: list[str], denoiser=denoiser, pattern=pattern):
                return pooled(denoiser, pattern, tokenizer, texts, self.batch_size)

            found[name] = {task.__name__: task(embed, self.texts) for task in TASKS}
        return found


@torch.no_grad()
def pooled(
    denoiser: Denoiser,
    pattern: AttentionPattern,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    batch_size: int,
) -> Float[np.ndarray, "N D"]:
    """The mean of the last layer over all tokens of each text, of unit length."""
    model = denoiser.model.eval()
    reader = Denoiser(model, pattern, denoiser.mask_id, denoiser.token_shift, denoiser.layer_types)
    encoded, made = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]], []
    for begin in range(0, len(texts), batch_size):
        chunk = encoded[begin : begin + batch_size]
        ids = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True).to(model.device)
        position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        real = position < torch.tensor([len(c) for c in chunk], device=ids.device)[:, None]
        rows = Rows(torch.ones_like(real), torch.where(real, 0, -1), position)
        every = torch.arange(ids.numel(), device=ids.device)
        hidden = reader.hidden(every, ids, position, reader.masks(rows, rows), use_cache=False)
        hidden = hidden.view(*ids.shape, -1).float()
        made.append(((hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)).cpu())
    return normalize(torch.cat(made).numpy())


def verses() -> list[list[str]]:
    """The held-out verses, by chapter."""
    return [[v for v in c.split("\n") if len(v.split()) >= MIN_WORDS] for c in prose.chapters("test")]


def similarity(embed: Embed, num: int) -> dict:
    """Verses beside copies in which a known fraction of the words is another verse's: does the cosine follow it?"""
    rng = random.Random(0)
    pool = [v for chapter in verses() for v in chapter]
    words = [w for v in pool for w in v.split()]
    one, two, kept = [], [], []
    for verse in rng.sample(pool, min(num, len(pool))):
        own = verse.split()
        replaced = set(rng.sample(range(len(own)), rng.randint(0, len(own))))
        one.append(verse)
        two.append(" ".join(rng.choice(words) if i in replaced else w for i, w in enumerate(own)))
        kept.append(1 - len(replaced) / len(own))
    cosine = (embed(one) * embed(two)).sum(1)

    def rho(a, b, axis=-1):
        return spearmanr(a, b).statistic

    return scored("Spearman", rho(cosine, kept), len(kept), rho, cosine, np.array(kept))


def retrieval(embed: Embed, num: int) -> dict:
    """The second half of each verse, among those of all, by its first half: the mean reciprocal rank."""
    rng = random.Random(1)
    chosen = rng.sample(sorted({v for chapter in verses() for v in chapter}), num)
    halves = [(v.split()[: len(v.split()) // 2], v.split()[len(v.split()) // 2 :]) for v in chosen]
    queries, documents = (embed([" ".join(h[side]) for h in halves]) for side in (0, 1))
    cosine = queries @ documents.T
    reciprocal = 1 / (cosine >= cosine.diagonal()[:, None]).sum(1)
    return scored("MRR", reciprocal.mean(), num, np.mean, reciprocal)


def labelled(num: int) -> tuple[list[str], Int[np.ndarray, " N"]]:
    """Verses of ten chapters, and the number of the chapter of each."""
    longest = sorted(verses(), key=len, reverse=True)[:CLASSES]
    chosen = [(v, i) for i, chapter in enumerate(longest) for v in chapter[: num // CLASSES]]
    return [v for v, _ in chosen], np.array([i for _, i in chosen])


def classification(embed: Embed, num: int) -> dict:
    """Which of ten chapters a verse is from: logistic regression on every other verse, tested on the others."""
    texts, label = labelled(num)
    features, train = embed(texts), np.arange(len(texts)) % 2 == 0
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1))
    right = (model.fit(features[train], label[train]).predict(features[~train]) == label[~train]).astype(float)
    return scored("accuracy", right.mean(), len(right), np.mean, right)


def clustering(embed: Embed, num: int) -> dict:
    """The same verses by k-means: do the clusters agree with the chapters?"""
    texts, label = labelled(num)
    found = KMeans(CLASSES, n_init=10, random_state=0).fit_predict(embed(texts))
    score = float(v_measure_score(label, found))
    return {"metric": "V-measure", "score": score, "low": None, "high": None, "n": len(texts)}


def scored(metric: str, score: float, n: int, statistic: Callable, *samples: np.ndarray) -> dict:
    """A score with its 95 % bootstrap interval."""
    found = bootstrap(
        samples, statistic, paired=True, vectorized=False, n_resamples=RESAMPLES, method="percentile", rng=0
    )
    interval = found.confidence_interval
    return {"metric": metric, "score": float(score), "low": float(interval.low), "high": float(interval.high), "n": n}


TASKS = (similarity, retrieval, classification, clustering)
