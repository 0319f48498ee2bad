"""Rows of data: a pure function of (seed, index), and packed from whole documents."""

import random

import pytest
import torch
from common import everyday
from prepared_data import prepared

from dlm.attention.bidir import Bidir
from dlm.attention.block import Block
from dlm.data import prose
from dlm.data.packing import MIN_ROOM, Document, PackedRows, Windows, collate, pack
from dlm.evaluation.likelihood import windows


@pytest.mark.trains
@pytest.mark.parametrize("group", everyday([16, 1]))
def test_a_row_is_a_pure_function_of_seed_and_index(tokenizer, group):
    one, two = (prepared(tokenizer, f"+data.group={group}").train_rows for _ in range(2))
    two[5]  # reading other rows first changes nothing
    for name in ("x0", "maskable", "document", "position"):
        assert torch.equal(getattr(one[41], name), getattr(two[41], name))
    assert not torch.equal(one[41].x0, one[42].x0)
    assert not torch.equal(one[41].x0, prepared(tokenizer, f"+data.group={group}", seed=1).train_rows[41].x0)


@pytest.mark.trains
@pytest.mark.parametrize("pattern", [Block(16), Bidir(16), Block(1)])
def test_rows_hold_whole_documents_of_whole_blocks(tokenizer, pattern):
    rows = prepared(tokenizer, "data.mixture.prose=0", pattern=pattern).train_rows
    batch = collate([rows[i] for i in range(64)])
    assert batch.x0.shape == (64, 128)
    assert not batch.maskable[batch.document < 0].any()
    for row in range(64):
        for document in batch.document[row].unique().tolist():
            where = batch.document[row] == document
            position = batch.position[row][where]
            assert position.tolist() == list(range(len(position)))
            if document >= 0 and not batch.maskable[row][where].all():  # a task, not the filling prose
                assert len(position) % pattern.block_size == 0
                assert batch.x0[row][where][-1] == tokenizer.eos_token_id
                answer = batch.maskable[row][where].int()
                assert (answer.diff() >= 0).all() and answer[-1] == 1


def test_a_source_that_weighs_nothing_is_not_seen_at_all(tokenizer):
    """Of the prose every token may be masked, so that a document of it has no context."""

    def share_of_prose(*overrides):
        rows = prepared(tokenizer, *overrides).train_rows
        batch = collate([rows[i] for i in range(32)])
        documents = [(row, n) for row in range(32) for n in batch.document[row].unique().tolist() if n >= 0]
        return sum(batch.maskable[r][batch.document[r] == n].all().item() for r, n in documents) / len(documents)

    assert share_of_prose("data.mixture.prose=0") == 0 < share_of_prose("data.mixture.prose=1e-9")
    assert share_of_prose("data.mixture.tasks=0") == 1


def documents(tokenizer, size: int, group: int) -> list[Document]:
    """The tasks of 96 rows of data=long without prose, under blocks of a size."""
    overrides = ["data=long", f"data.group={group}", "data.mixture.prose=0"]
    rows = prepared(tokenizer, *overrides, pattern=Block(size), num_rows=96).train_rows
    return [document for i in range(96) for document in rows.documents(i)]


@pytest.mark.trains
def test_rows_that_are_packed_together_hold_more(tokenizer):
    one_by_one, together = (sum(len(d.ids) for d in documents(tokenizer, 8, group)) for group in (1, 16))
    assert together > 1.05 * one_by_one


def test_each_row_of_a_group_has_a_source_of_its_own(tokenizer):
    """Rows without a task are of prose alone."""
    rows = prepared(tokenizer, "data=long", "data.mixture={tasks: 0.5, prose: 0.5}", num_rows=64).train_rows
    has_tasks = [any(d.kind == "answers" for d in rows.documents(i)) for i in range(64)]
    groups = [has_tasks[i : i + 16] for i in range(0, 64, 16)]
    assert all(any(group) and not all(group) for group in groups)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_of_the_tasks_has_short_answers(tokenizer, share):
    overrides = ["data=long", "data.mixture.prose=0", f"data.short={share}"]
    rows = prepared(tokenizer, *overrides, num_rows=96).train_rows
    answers = [sum(d.maskable) - d.fill for i in range(96) for d in rows.documents(i)]
    assert sum(n < 40 for n in answers) / len(answers) == pytest.approx(share, abs=0.1)


def test_rows_that_are_packed_together_may_hold_many_documents_each(tokenizer):
    """A group of long rows takes more documents than an empty row may refuse."""
    rows = prepared(tokenizer, "data=long", "data.length=1024", "data.group=16", "data.mixture.prose=0").train_rows
    held = [len(rows.documents(n)) for n in range(16)]
    assert min(held) > 5 and sum(held) > 100


def test_the_block_size_does_not_decide_which_tasks_are_seen(tokenizer):
    """Short ones stand in the ends of rows that long ones leave, if each row is closed on its own for many."""
    shares = [
        sum(document.ids.index(tokenizer.eos_token_id) - document.maskable.index(True) < 39 for document in drawn)
        / len(drawn)
        for drawn in (documents(tokenizer, size, 16) for size in (4, 64))
    ]
    assert shares[0] == pytest.approx(shares[1], abs=0.06)


class OftenTooLong:
    """A source of one document that fits a row in one of four draws."""

    def draw(self, rng, room):
        return Document([5, 0], [True, True]) if rng.random() < 0.25 else None


class AlwaysTooLong:
    def draw(self, rng, room):
        return None


def test_a_first_document_that_does_not_fit_is_drawn_again_and_a_row_that_nothing_fits_is_named():
    def rows(source):
        return PackedRows([source], [1.0], None, 8, 200, pad_id=1, eos_id=0, tail=lambda *_: 0, seed=0)

    assert all((rows(OftenTooLong())[i].document >= 0).any() for i in range(200))
    with pytest.raises(ValueError, match="no document fits a row of 8 tokens"):
        rows(AlwaysTooLong())[0]


def test_pack_by_hand():
    row = pack([Document([5, 6], [False, True]), Document([7], [True])], 5, pad_id=1)
    assert row.x0.tolist() == [5, 6, 7, 1, 1]
    assert row.maskable.tolist() == [False, True, True, False, False]
    assert row.document.tolist() == [0, 0, 1, -1, -1]
    assert row.position.tolist() == [0, 1, 0, 0, 1]
    with pytest.raises(ValueError, match="do not fit a row of 2"):
        pack([Document([1, 2, 3], [True] * 3)], 2, 1)


def test_windows_cover_the_whole_text():
    source, rng = Windows([list(range(2, 40))], eos_id=0), random.Random(0)
    seen = {token for _ in range(300) for token in source.draw(rng, 8).ids}
    assert seen == {0, *range(2, 40)}


def test_likelihood_windows_score_the_bytes_they_say(tokenizer):
    rows, num_bytes = windows([prose.chapters("test")[0]], tokenizer, 64, 2)
    scored = "".join(tokenizer.decode(row.x0[row.maskable]) for row in rows)
    assert num_bytes == len(scored.encode()) and sum(int(r.maskable.sum()) for r in rows) == 2 * 63


def test_windows_draw_what_lengths_as_weights_would_draw(tokenizer):
    texts = [list(range(3, 3 + n)) for n in (5, 1, 40, 17, 2)]
    source, ours, plain = Windows(texts, eos_id=0), random.Random(5), random.Random(5)
    ended = [[*ids, 0] for ids in texts]
    for _ in range(500):
        ids = plain.choices(ended, [len(ids) for ids in ended])[0]
        start = plain.randrange(max(1, len(ids) - MIN_ROOM))
        assert source.draw(ours, 8).ids == ids[start : start + 8]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.mixture={tasks: 0.0, prose: 0.0}", "of which one is > 0"),
        ("+data.mixture.poems=1", "this dataset has"),
        ("data.families=[juggling]", "juggling.* are unknown"),
        ("data.length=1", "data.length 1"),
        ("+data.group=0", "data.group 0"),
    ],
)
def test_bad_values_are_named(tokenizer, override, message):
    with pytest.raises(ValueError, match=message):
        prepared(tokenizer, override)
