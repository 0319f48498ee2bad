"""Validation is of the same tokens for every pattern, block size and seed; an untouched parent has its likelihood."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from common import MASK_ID, PATTERNS, WITH_SHIFT, config, everyday, pattern_of
from corpora import text_file
from torch.nn.functional import cross_entropy

from analysis.tables.collect import of_one_validation
from dlm.config.build import build, make
from dlm.data.module import PackedData
from dlm.data.packing import Document, collate
from dlm.data.validation import VERSION, draw, size_of_text
from dlm.model.layout import Layout
from dlm.model.parent import load_parent

LENGTH = 64
SMALL = (f"data.length={LENGTH}", "data.batch_size=4", "data.val_rows=6", "tokens=256", "data.mixture.prose=0.3")


def data_for(pattern, tokenizer, *overrides, seed=0) -> PackedData:
    data = make(config(*SMALL, *overrides).data)
    data.prepare(tokenizer, pattern.tail, 1, seed)
    return data


def validated(experiment, batch_size: int | None = None, pieces: int = 1) -> dict[str, float]:
    """The metrics of a validation, as a trainer makes it."""
    data, conversion = experiment.data, experiment.conversion
    data.batch_size = batch_size or data.batch_size
    conversion.pieces = pieces
    conversion._trainer = SimpleNamespace(training=False, datamodule=data)
    conversion.eval()
    conversion.on_validation_epoch_start()
    with torch.no_grad():
        for number, batch in enumerate(data.val_dataloader()):
            conversion.validation_step(conversion.on_before_batch_transfer(batch, 0), number)
    return conversion.val_metrics()


@pytest.mark.trains
@pytest.mark.parametrize("data", everyday(["embedded", "long"]))
def test_every_pattern_block_size_shift_seed_and_fill_is_validated_on_the_same_tokens(tokenizer, data):
    length = 64 if data == "embedded" else 256
    choice, found = (f"data={data}", f"data.length={length}", "data.val_rows=3"), []
    for name, shift in WITH_SHIFT:
        for size in (1, 8, length):
            pattern, fill = pattern_of(name, size), f"data.fill={'scored' if shift else 'unscored'}"
            rows = data_for(pattern, tokenizer, *choice, fill, seed=size).validation_rows
            batch = Layout(pattern, MASK_ID, shift, None, False).scorable(collate(list(rows)))
            found.append((torch.where(batch.targets, batch.x0, -1), rows.num_bytes))
    assert len(found) == 3 * len(WITH_SHIFT) and (found[0][0] >= 0).any()
    assert all(torch.equal(tokens, found[0][0]) and size == found[0][1] for tokens, size in found)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_row_is_one_document_in_whole_blocks_or_filled_by_prose(tokenizer, name):
    pattern = pattern_of(name, 8)
    rows = data_for(pattern, tokenizer).validation_rows
    assert rows.kinds == ["answers"] * 6 + ["prose"] * 6
    for row, kind in zip(rows, rows.kinds, strict=True):
        length = int((row.document >= 0).sum())
        assert set(row.document.tolist()) <= {0, -1} and length % pattern.block_size == 0
        own = row.x0[: length - int(row.fill.sum())]
        if kind == "prose":
            assert length == LENGTH and not row.fill.any() and row.targets.tolist() == [False] + [True] * (LENGTH - 1)
        else:
            assert own[-1] == tokenizer.eos_token_id and (row.x0[row.fill] == tokenizer.eos_token_id).all()
            assert row.maskable[row.fill].all() and not row.targets[0]


def test_an_untouched_parent_at_one_token_with_the_shift_has_its_own_likelihood(tokenizer):
    """From plain transformers, answers and prose each, in nats and in bits per byte (I12). The mask token, of which the
    parent knows nothing, is left out of its softmax."""
    experiment = build(config(*SMALL, "block_size=1", "token_shift=true"))
    found, rows = validated(experiment), experiment.data.validation_rows
    parent = load_parent("pkg://dlm/assets/tiny")
    nats = {"answers": [], "prose": []}
    num_bytes = dict.fromkeys(nats, 0)
    for row, kind in zip(rows, rows.kinds, strict=True):
        ids = row.x0[row.document >= 0]
        with torch.no_grad():
            logits = parent.model(ids[None]).logits[0]
        logits[:, parent.mask_id] = -torch.inf
        first = int(row.targets.int().argmax())
        nats[kind] += cross_entropy(logits[first - 1 : -1], ids[first:], reduction="none").double().tolist()
        num_bytes[kind] += len(tokenizer.decode(ids[first:], skip_special_tokens=True).encode())
    both = nats["answers"] + nats["prose"]
    expected = {"val/nelbo": sum(both) / len(both)}
    expected["val/bits_per_byte"] = sum(both) / sum(num_bytes.values()) / math.log(2)
    for kind, values in nats.items():
        expected[f"val/nelbo_{kind}"] = sum(values) / len(values)
        expected[f"val/bits_per_byte_{kind}"] = sum(values) / num_bytes[kind] / math.log(2)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.trains
def test_seed_batch_size_and_pieces_do_not_change_the_validation_of_the_same_weights():
    plain, *others = (build(config(*SMALL, "block_size=8", *more)) for more in ([], ["seed=1"], ["data.fill=scored"]))
    found = validated(plain)
    assert all(validated(other) == found for other in others)
    assert validated(plain, batch_size=3) == pytest.approx(found, rel=1e-5)
    assert validated(plain, pieces=2) == pytest.approx(found, rel=1e-5)


def test_plain_text_has_prose_alone_and_short_documents_are_whole(tmp_path, tokenizer):
    made = make(
        config("data=text", f"data.path={text_file(tmp_path)}", f"data.length={LENGTH}", "data.val_rows=5").data
    )
    made.prepare(tokenizer, pattern_of("block", 8).tail, 1, 0)
    rows = made.validation_rows
    assert rows.metrics(torch.ones(5).double()).keys() == {
        "nelbo",
        "bits_per_byte",
        "nelbo_prose",
        "bits_per_byte_prose",
    }
    assert all((row.document >= 0).sum() % 8 == 0 and row.x0[row.targets][-1] == tokenizer.eos_token_id for row in rows)


class Draws:
    """A source of documents of these lengths in turn; None does not fit."""

    def __init__(self, lengths, prompt=0):
        self.lengths, self.prompt = iter(lengths), prompt

    def draw(self, rng, room):
        n = next(self.lengths, None)
        return n and Document([5] * n, [False] * self.prompt + [True] * (n - self.prompt))


def test_what_fits_is_drawn_and_of_prose_what_fills_the_row():
    rng = random.Random(0)
    assert len(draw(Draws([None, 3, 8], prompt=1), rng, 8).ids) == 3
    assert len(draw(Draws([3, 5, 8, 4]), rng, 8).ids) == 8
    assert len(draw(Draws([3, 5]), rng, 8).ids) == 5
    with pytest.raises(ValueError, match="no document fits a row of 8 tokens"):
        draw(Draws([]), rng, 8)


def test_bytes_are_those_of_the_scored_text(tokenizer):
    ids = tokenizer("add: é=ab", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    assert size_of_text(Document(ids, [True] * len(ids)), tokenizer) == len("add: é=ab".encode())
    assert size_of_text(Document(ids, [False] * (len(ids) - 2) + [True] * 2), tokenizer) == len("ab")


def test_tables_never_mix_what_was_validated_on_other_tokens():
    def run(name, version):
        return {"run": name, "val_nelbo": 2.0, "validation": version, "seed": 0}

    curves = [{"run": name, "metric": "val/nelbo", "value": 1.0, "tokens": 9} for name in ("old", "older", "new")]
    rows = {"runs": [run("old", math.nan), run("older", None), run("new", VERSION)], "curves": curves}
    found = of_one_validation(rows)
    assert [row["val_nelbo"] for row in found["runs"]] == [None, None, 2.0]
    assert [row["run"] for row in found["curves"]] == ["new"]
    old = {"runs": rows["runs"][:2], "curves": curves[:2]}
    assert of_one_validation(old) == old
    assert of_one_validation({"runs": [], "curves": []}) == {"runs": [], "curves": []}
