"""Install a finished parent run as an embedded parent: `python -m dlm.exported.embedded run=ID to=dlm/assets/tiny`.

Writes the weights beside the tokenizer, and a card with their training data, cost and accuracy. This is the last step
of `make parent`, `make long-parent` and `make vlm-parent`.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from omegaconf import DictConfig
from transformers import AutoConfig

from dlm.config.build import ar_denoiser
from dlm.config.command_line import hydra_command
from dlm.config.finished import FinishedRun
from dlm.config.kinds import require_options
from dlm.config.settings import Embedded
from dlm.data import prose
from dlm.evaluation.likelihood import Likelihood, likelihood, windows
from dlm.exported import vision_card
from dlm.markdown import table
from dlm.runs.run import Run
from dlm.runs.storage import write_atomically

MAX_BYTES = 10_000_000  # of committed weights

CARD = """\
# The embedded parent of pretrain={pretrain}

A {shape.model_type} of {record[parameters]:,} parameters ({shape.num_hidden_layers} layers of width {shape.hidden_size},
{shape.vocab_size} tokens), pretrained autoregressively by this repository: `python -m dlm.train pretrain={pretrain}`. It
exists to be converted: small enough for a laptop, and good enough at every task that what a conversion destroys is
visible. Apache-2.0, like the rest; the prose it was trained on is in the public domain (`../prose/README.md`).

| | |
| --- | --- |
| from | {record[parent][source]} |
| data | {config.data.mixture.tasks:.0%} rows of generated tasks ({num_families} families, `dlm/data/tasks.py`; the loss is on answers only), {config.data.mixture.prose:.0%} rows of prose |
| tokens | {record[tokens]:,} in {record[steps]:,} steps of {config.data.batch_size} rows of {config.data.length}, seed {config.seed} |
| training | {minutes:.0f} minutes on a machine of {record[machine][cpus]} CPU cores, peak learning rate {config.lr:g} |
| tokenizer | byte-level BPE trained on the same data (`dlm/data/tokenizer.py`); digits, capitals and punctuation stand alone |
| versions | {versions} |

## Tasks

Greedy exact match on the test split, {per_family} items per family, with 95 % Wilson intervals. Prompts are split by
their hash: no test prompt was ever trained on.

{accuracy}

## Prose

| | nats per token | bits per byte |
| --- | --- | --- |
| held-out chapters (test split) | {test.nats:.3f} ± {test.standard_error:.3f} | {test.bits_per_byte:.3f} |
| chapters it was trained on | {train.nats:.3f} ± {train.standard_error:.3f} | {train.bits_per_byte:.3f} |

Perplexity {perplexity:.2f} per token on held-out chapters. The small difference between the two rows says that the prose
is learnt, not memorised. Four-way cloze by likelihood: {metrics[cloze]:.1%} of {metrics[cloze_items]} (chance 25 %).
"""  # noqa: E501


def card(finished: FinishedRun) -> str:
    """The card, in Markdown, of a parent run."""
    record, config, shape = finished.run.record, finished.config, AutoConfig.from_pretrained(finished.folder)
    metrics, pretrain = record["evaluation"]["dlm"], record["choices"]["pretrain"]
    overall, test = metrics["generation"][0], Likelihood(**metrics["likelihood"])
    train = likelihood_of_training_prose(finished)
    rows = [
        [name, f"{g['accuracy']:.1%}", f"{g['low']:.1%} – {g['high']:.1%}", str(g["n"])]
        for name, g in (*overall["families"].items(), ("**all**", overall))
    ]
    versions = record["versions"]
    return CARD.format(
        record=record,
        config=config,
        shape=shape,
        pretrain=pretrain,
        num_families=len(overall["families"]),
        minutes=record["train_seconds"] / 60,
        versions=", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "transformers", "lightning")),
        per_family=overall["n"] // len(overall["families"]),
        accuracy=table(["family", "exact match", "95 % interval", "items"], rows),
        test=test,
        train=train,
        perplexity=math.exp(test.nats),
        metrics=metrics,
    )


def likelihood_of_training_prose(finished: FinishedRun) -> Likelihood:
    """The likelihood of training prose, measured on as many tokens as that of held-out prose."""
    parent, settings = finished.converted, finished.run.record["evaluation"]["settings"]
    texts = list(prose.chapters("train"))[::18]  # spread over the book like the held-out chapters
    rows, num_bytes = windows(texts, parent.tokenizer, settings["length"], settings["likelihood_rows"])
    return likelihood(ar_denoiser(parent), rows, num_bytes, 1, settings["batch_size"])


def install(run: Run, to: Path) -> None:
    """Copy a run's model to the folder `to` and write its card. Raises `ValueError` if the weights are too large or
    damaged."""
    finished = FinishedRun(run)
    size = (finished.folder / "model.safetensors").stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"the weights of run {run.id} take {size:,} bytes; at most {MAX_BYTES:,} are committed")
    text = (card if finished.converted.processor is None else vision_card.card)(finished)
    shutil.copytree(finished.folder, to, dirs_exist_ok=True)
    write_atomically(to / "README.md", text)


@hydra_command("embedded")
def main(cfg: DictConfig) -> None:
    require_options(cfg, "embedded", Embedded)
    if cfg.run is None:  # the sweeps of a study pretrain other parents in the same way
        run = Run.newest(cfg.runs_dir, of_sweeps=False, pretrain=cfg.pretraining)
    else:
        run = Run.load(str(cfg.run), cfg.runs_dir)
    install(run, Path(cfg.to))
    print(f"{cfg.to}: the model of run {run.id}, and its card")


if __name__ == "__main__":
    main()
