"""Several sources with weights: the same rows at any number of processes, in the shares that were asked for."""

import json

import pytest
from common import config

from dlm.attention.block import Block
from dlm.config.build import make
from dlm.data.loading import MicroBatches


@pytest.fixture
def sources(tmp_path, monkeypatch, own_cache):
    """`text` and `chat` in the working folder."""
    monkeypatch.chdir(tmp_path)
    texts = [{"text": f"number {n} is a text" + " of words" * (n % 9)} for n in range(100)]
    pairs = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(100)]
    for name, rows in (("text", texts), ("chat", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "{text:{path:text.jsonl,weight:0.25},chat:{kind:chat,template:plain,path:chat.jsonl,weight:0.75}}"


def mixed(tokenizer, sources: str, *overrides: str, num_rows: int = 400):
    data = make(config("data=mixed", f"data.sources={sources}", "data.length=64", *overrides).data)
    data.prepare(tokenizer, Block(8).tail, num_rows, 0)
    return data


@pytest.mark.trains
def test_rows_are_of_one_source_each_in_the_shares_of_the_weights(tokenizer, sources):
    rows = mixed(tokenizer, sources).train_rows
    kinds = [{document.kind for document in rows.documents(i)} for i in range(400)]
    assert all(len(kind) == 1 for kind in kinds)
    assert sum(kind == {"answers"} for kind in kinds) / 400 == pytest.approx(0.75, abs=0.06)


@pytest.mark.trains
def test_the_rows_are_those_of_one_process_at_any_world_size_and_from_any_row_on(tokenizer, sources):
    rows, again = (mixed(tokenizer, sources).train_rows for _ in range(2))
    one = [x for number in range(8) for x in MicroBatches(rows, 4, 0, 1)[number].x0.tolist()]
    for world_size in (2, 4):
        found = [None] * 32
        for rank in range(world_size):
            batches = MicroBatches(again, 4, rank, world_size)
            for number in reversed(range(8 // world_size)):  # a resumed run begins anywhere
                for i, row in enumerate(batches[number].x0.tolist()):
                    found[rank + world_size * (4 * number + i)] = row
        assert found == one


def test_every_source_has_rows_of_validation_and_one_of_no_weight_is_not_read(tokenizer, sources):
    data = mixed(tokenizer, sources, "data.val_rows=3")
    assert data.validation_rows.kinds == ["prose"] * 3 + ["answers"] * 3
    data = mixed(tokenizer, sources.replace("weight:0.75", "weight:0").replace("chat.jsonl", "absent.jsonl"))
    assert set(data.corpora) == {"text"}


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("{}", "data.sources is empty"),
        ("{a:{kind:poem,path:x}}", "data.sources.a.kind 'poem' is unknown: choose one of text, chat"),
        ("{a:{weight:1}}", "data.sources.a.path is not set"),
        ("{a:{path:text.jsonl,feild:x}}", r"data.sources.a has no option \['feild'\]: choose from .*'field'"),
        ("{a:{path:text.jsonl,weight:much}}", "data.sources.a.weight 'much' must be a finite number"),
        ("{a:{path:text.jsonl,weight:-1}}", "must hold weights >= 0"),
        ("{a:{path:absent.jsonl}}", "data.sources.a.path 'absent.jsonl' does not exist"),
    ],
)
def test_a_source_that_cannot_be_is_named(sources, message, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        mixed(tokenizer, sources)
