"""Passes over a corpus: every document once in each, whatever the order, the pattern and the number of sources."""

import json
import pickle
import random
from collections import Counter

import pytest

from dlm.attention.bidir import Bidir
from dlm.attention.block import Block
from dlm.data import passes
from dlm.data.mixed import Mixed
from dlm.data.passes import PassRows, best_fit, size
from dlm.data.text import Text

LENGTH = 32


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch, own_cache):
    monkeypatch.chdir(tmp_path)
    texts = [{"text": f"number {n} is a text" + " of words" * (n * 7 % 40)} for n in range(80)]
    pairs = [{"prompt": f"{n}+{'1' * (n % 14)}=", "completion": str(n + 1)} for n in range(40)]
    for name, rows in (("text", texts), ("chat", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def text(tokenizer, order, pattern=None, seed=0):
    data = Text(path="text.jsonl", length=LENGTH, batch_size=4, val_rows=2, order=order, group=4, fill="unscored")
    data.prepare(tokenizer, (pattern or Block(8)).tail, 10_000, seed)
    return data


def pass_of(rows: PassRows, table, epoch=0):
    return [rows.documents(i) for i in range(epoch * len(table), (epoch + 1) * len(table))]


@pytest.mark.parametrize("pattern", [Block(8), Block(1), Bidir(8)])
@pytest.mark.parametrize("order", ["sequential", "packed", "grouped"])
def test_a_pass_has_every_token_of_every_document_once(order, pattern, tokenizer):
    data = text(tokenizer, order, pattern)
    (table,), part = data.train_rows.tables, data.train_rows.sources[0].part
    expected = Counter(token for ids in part for token in ids.tolist())
    for epoch in range(2):
        rows = pass_of(data.train_rows, table, epoch)
        seen = Counter(token for row in rows for d in row for token in d.ids[: len(d.ids) - d.fill])
        assert seen == expected
        assert all(sum(len(d.ids) for d in row) <= LENGTH for row in rows)
        whole = [d for row in rows for d in row if d.ids[-1] == tokenizer.eos_token_id]
        assert all(len(d.ids) % pattern.block_size == 0 for d in whole) and len(whole) == len(part)


@pytest.mark.trains
def test_sequential_is_the_order_of_the_source_and_others_are_shuffled_anew_in_each_pass(tokenizer):
    def firsts(order, epoch, seed=0):
        rows = text(tokenizer, order, seed=seed).train_rows
        return [tuple(row[0].ids) for row in pass_of(rows, rows.tables[0], epoch)]

    in_order = text(tokenizer, "sequential").train_rows
    joined = [i for row in pass_of(in_order, in_order.tables[0]) for d in row for i in d.ids[: len(d.ids) - d.fill]]
    assert joined == [i for ids in in_order.sources[0].part for i in ids.tolist()]
    assert firsts("sequential", 0) == firsts("sequential", 1)
    for order in ("packed", "grouped"):
        assert firsts(order, 0) == firsts(order, 0) != firsts(order, 1)
        assert firsts(order, 0) != firsts(order, 0, seed=1)
        assert sorted(firsts(order, 0)) == sorted(firsts(order, 1))


def test_packed_rows_are_nearly_full_and_grouped_ones_of_similar_length(tokenizer):
    packed, grouped = (text(tokenizer, order).train_rows for order in ("packed", "grouped"))
    rows = pass_of(packed, packed.tables[0])
    assert sum(len(d.ids) for row in rows for d in row) / (LENGTH * len(rows)) > 0.95
    lengths = [len(row[0].ids) for row in pass_of(grouped, grouped.tables[0])]
    assert all(len(row) == 1 for row in pass_of(grouped, grouped.tables[0]))
    spread = [max(lengths[i : i + 4]) - min(lengths[i : i + 4]) for i in range(0, len(lengths), 4)]
    apart = sorted(random.Random(0).sample(lengths, 4))
    assert sum(spread) / len(spread) < (apart[-1] - apart[0]) / 2


def test_best_fit_takes_the_row_with_the_least_room_that_is_enough():
    pieces = [(n, 0, tokens, 0) for n, tokens in enumerate([9, 7, 6, 3, 3, 2])]
    assert sorted(sorted(map(size, row)) for row in best_fit(pieces, 10)) == [[2], [3, 6], [3, 7], [9]]


def test_sources_share_every_thousand_rows_by_weight_and_each_goes_through_its_own_pass(tokenizer):
    sources = {"text": {"path": "text.jsonl", "weight": 0.3}}
    sources["chat"] = {"kind": "chat", "template": "plain", "path": "chat.jsonl", "weight": 0.7}
    data = Mixed(sources, length=LENGTH, batch_size=4, val_rows=2, order="packed")
    data.prepare(tokenizer, Block(8).tail, 3000, 0)
    rows, answers = data.train_rows, []
    for period in range(2):
        drawn = [rows.documents(i) for i in range(1000 * period, 1000 * period + 1000)]
        answers += [row for row in drawn if row[0].kind == "answers"]
        assert len(answers) == 700 * (period + 1)
    table = rows.tables[1]
    for epoch in range(3):
        one = answers[epoch * len(table) : (epoch + 1) * len(table)]
        assert len({tuple(d.ids) for row in one for d in row}) == len(rows.sources[1].part)


def test_the_table_of_a_pass_is_made_once_and_other_processes_open_it(tokenizer, monkeypatch):
    rows = text(tokenizer, "packed").train_rows
    monkeypatch.setattr(passes, "write", lambda *_: pytest.fail("it is made again"))
    again = pickle.loads(pickle.dumps(rows))
    assert [again.documents(i) for i in (5, 70)] == [rows.documents(i) for i in (5, 70)]
    assert text(tokenizer, "packed", seed=3).train_rows.tables[0].pieces.tolist() == rows.tables[0].pieces.tolist()
    monkeypatch.undo()


def test_answers_are_not_cut_and_those_that_fit_no_row_are_left_out(tokenizer):
    sources = {"chat": {"kind": "chat", "template": "plain", "path": "chat.jsonl"}}
    for order in ("sequential", "packed", "grouped"):
        data = Mixed(sources, length=16, batch_size=4, val_rows=2, order=order)
        data.prepare(tokenizer, Block(8).tail, 1000, 0)
        (table,), (source,) = data.train_rows.tables, data.train_rows.sources
        found = [d for row in pass_of(data.train_rows, table) for d in row]
        assert len(found) == len(source.part) - source.too_long < len(source.part)
        assert all(d.ids[-1] == tokenizer.eos_token_id and d.kind == "answers" for d in found)


def test_a_weight_that_is_too_small_for_passes_is_refused(tokenizer):
    sources = {name: {"path": "text.jsonl", "weight": weight} for name, weight in (("a", 1.0), ("b", 1e-4))}
    data = Mixed(sources, length=LENGTH, batch_size=4, val_rows=2, order="packed")
    with pytest.raises(ValueError, match="a source has less than one of 1000 rows"):
        data.prepare(tokenizer, Block(8).tail, 100, 0)


def test_an_unknown_order_is_named(tokenizer):
    with pytest.raises(ValueError, match="data.order 'by length' is unknown: choose one of random, sequential"):
        text(tokenizer, "by length")
