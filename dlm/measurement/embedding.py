"""The quality of a model's hidden states as text embeddings, zero-shot (Efficient-DLM, Table 4): the mean of the last
layer, under a bidirectional mask for the dLM and a causal one for its parent.

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

Embed = Callable[[list[str]], Float[np.ndarray, "T D"]]  # of T texts, each of unit length
CLASSES, RESAMPLES, MIN_WORDS = 10, 1000, 8


class Embedding(Measurement):
    """Runs each task on about `texts` texts, the same for every run."""

    def __init__(self, texts: int, batch_size: int):
        if texts < 2 * CLASSES:
            raise ValueError(f"measurement.texts {texts} must be at least {2 * CLASSES}, two of each class")
        self.texts, self.batch_size = texts, batch_size

    def __call__(self, subject):
        """For `dlm` and `ar`, the `score` of every task with its `metric`, its 95 % interval (bootstrap over the texts;
        None if there is none) and its sample count `n`."""
        tokenizer = subject.converted.tokenizer
        scores = {}
        for name, pattern in (("dlm", Bidir(1)), ("ar", AR())):
            denoiser = getattr(subject, name)

            def embed(texts: list[str], denoiser=denoiser, pattern=pattern):
                return pooled(denoiser, pattern, tokenizer, texts, self.batch_size)

            scores[name] = {task.__name__: task(embed, self.texts) for task in TASKS}
        return scores


@torch.no_grad()
def pooled(
    denoiser: Denoiser,
    pattern: AttentionPattern,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    batch_size: int,
) -> Float[np.ndarray, "T D"]:
    """The mean of the last layer over all tokens of each of T texts, scaled to unit length."""
    model = denoiser.model.eval()
    reader = Denoiser(model, pattern, denoiser.mask_id, denoiser.token_shift, denoiser.layer_types)
    encoded, embeddings = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]], []
    for begin in range(0, len(texts), batch_size):
        chunk = encoded[begin : begin + batch_size]
        ids = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True).to(model.device)
        position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        is_text = position < torch.tensor([len(c) for c in chunk], device=ids.device)[:, None]
        rows = Rows(torch.ones_like(is_text), torch.where(is_text, 0, -1), position)
        all_rows = torch.arange(ids.numel(), device=ids.device)
        hidden = reader.hidden(all_rows, ids, position, reader.masks(rows, rows), use_cache=False)
        hidden = hidden.view(*ids.shape, -1).float()
        embeddings.append(((hidden * is_text[..., None]).sum(1) / is_text.sum(1, keepdim=True)).cpu())
    return normalize(torch.cat(embeddings).numpy())


def verses() -> list[list[str]]:
    """The held-out verses, by chapter."""
    return [[v for v in c.split("\n") if len(v.split()) >= MIN_WORDS] for c in prose.chapters("test")]


def similarity(embed: Embed, num: int) -> dict:
    """Rank correlation between two similarities of a verse to a copy with random words replaced: the cosine of their
    embeddings, and the fraction of words that were kept."""
    rng = random.Random(0)
    pool = [v for chapter in verses() for v in chapter]
    words = [w for v in pool for w in v.split()]
    originals, copies, kept_fraction = [], [], []
    for verse in rng.sample(pool, min(num, len(pool))):
        verse_words = verse.split()
        replaced = set(rng.sample(range(len(verse_words)), rng.randint(0, len(verse_words))))
        originals.append(verse)
        copies.append(" ".join(rng.choice(words) if i in replaced else w for i, w in enumerate(verse_words)))
        kept_fraction.append(1 - len(replaced) / len(verse_words))
    cosine = (embed(originals) * embed(copies)).sum(1)

    def rho(a, b, axis=-1):
        return spearmanr(a, b).statistic

    return with_interval("Spearman", rho(cosine, kept_fraction), len(copies), rho, cosine, np.array(kept_fraction))


def retrieval(embed: Embed, num: int) -> dict:
    """The mean reciprocal rank of a verse's second half among those of all verses, with its first half as the query."""
    rng = random.Random(1)
    sampled = rng.sample(sorted({v for chapter in verses() for v in chapter}), num)
    halves = [(v.split()[: len(v.split()) // 2], v.split()[len(v.split()) // 2 :]) for v in sampled]
    queries, documents = (embed([" ".join(h[side]) for h in halves]) for side in (0, 1))
    cosine = queries @ documents.T
    reciprocal = 1 / (cosine >= cosine.diagonal()[:, None]).sum(1)
    return with_interval("MRR", reciprocal.mean(), num, np.mean, reciprocal)


def labelled(num: int) -> tuple[list[str], Int[np.ndarray, " T"]]:
    """T verses of the ten longest chapters, and the chapter index of each."""
    longest = sorted(verses(), key=len, reverse=True)[:CLASSES]
    pairs = [(v, i) for i, chapter in enumerate(longest) for v in chapter[: num // CLASSES]]
    return [v for v, _ in pairs], np.array([i for _, i in pairs])


def classification(embed: Embed, num: int) -> dict:
    """The chapter of a verse, one of ten: logistic regression on every second verse, accuracy on the others."""
    texts, label = labelled(num)
    features, train = embed(texts), np.arange(len(texts)) % 2 == 0
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1))
    correct = (model.fit(features[train], label[train]).predict(features[~train]) == label[~train]).astype(float)
    return with_interval("accuracy", correct.mean(), len(correct), np.mean, correct)


def clustering(embed: Embed, num: int) -> dict:
    """The agreement of k-means clusters of the same verses with their chapters."""
    texts, label = labelled(num)
    cluster = KMeans(CLASSES, n_init=10, random_state=0).fit_predict(embed(texts))
    score = float(v_measure_score(label, cluster))
    return {"metric": "V-measure", "score": score, "low": None, "high": None, "n": len(texts)}


def with_interval(metric: str, score: float, n: int, statistic: Callable, *samples: np.ndarray) -> dict:
    """A score with its 95 % bootstrap interval, from paired `samples`."""
    interval = bootstrap(
        samples, statistic, paired=True, vectorized=False, n_resamples=RESAMPLES, method="percentile", rng=0
    ).confidence_interval
    return {"metric": metric, "score": float(score), "low": float(interval.low), "high": float(interval.high), "n": n}


TASKS = (similarity, retrieval, classification, clustering)
