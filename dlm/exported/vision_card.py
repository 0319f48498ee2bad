"""The card of an embedded vision-language parent."""

from __future__ import annotations

from dlm.config.finished import FinishedRun
from dlm.markdown import table

CARD = """\
# The embedded vision-language parent

A {shape.model_type} of {parameters:,} parameters that reads rendered scenes ([how](../../../docs/how_to/vision.md)): a
{vision.model_type} of {vision.num_hidden_layers} layers of width {vision.hidden_size} on pictures of {vision.image_size} x
{vision.image_size} pixels in {patches} patches, a connector of two layers, and the language model of `../long`, all of it
pretrained with the AR loss by this repository: `make vlm-parent`. It exists to be converted. Apache-2.0, like the rest.

| | |
| --- | --- |
| from | {source} |
| data | `data=scenes`: {families}; the loss is on answers only |
| tokens | {tokens:,} in {steps:,} steps of {config.data.batch_size} rows of {config.data.length}, seed {config.seed} |
| training | {minutes:.0f} minutes on a machine of {cpus} CPU cores, peak learning rate {config.lr:g} |
| versions | {versions} |

## Questions about scenes

Greedy exact match on the test split, {per_family} items per family, with 95 % Wilson intervals, and the share of the steps
of an answer that are right. No scene of the test split was trained on under any question.

{accuracy}
"""  # noqa: E501


def card(finished: FinishedRun) -> str:
    """The card, in Markdown, of a run of pretrain=scenes."""
    record, config, shape = finished.run.record, finished.config, finished.converted.model.config
    vision, overall = shape.vision_config, record["evaluation"]["dlm"]["generation"][0]
    rows = [
        [name, f"{g['accuracy']:.1%}", f"{g['low']:.1%} – {g['high']:.1%}", f"{g['right_steps']:.1%}", str(g["n"])]
        for name, g in (*overall["families"].items(), ("**all**", overall))
    ]
    versions = record["versions"]
    return CARD.format(
        shape=shape,
        vision=vision,
        config=config,
        parameters=record["parameters"],
        patches=(vision.image_size // vision.patch_size) ** 2,
        source=record["parent"]["source"],
        families=", ".join(config.data.families or overall["families"]),
        tokens=record["tokens"],
        steps=record["steps"],
        minutes=record["train_seconds"] / 60,
        cpus=record["machine"]["cpus"],
        versions=", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "transformers", "lightning")),
        per_family=overall["n"] // len(overall["families"]),
        accuracy=table(["family", "exact match", "95 % interval", "right steps", "items"], rows),
    )
