"""A corpus on the disk: prepared once, by whoever comes first, from wherever it was interrupted; drawn from in
O(log n); the rows that it gives are those of texts in memory."""

import pickle
import random
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from common import config, resolved
from corpora import data_of, jsonl, texts
from transformers import AutoTokenizer

from dlm.config.inputs import inputs_of
from dlm.data import encoder as encoders
from dlm.data.encoder import encoding
from dlm.data.encoding import encode
from dlm.data.origin import BATCH, Batch, Origin
from dlm.data.packing import Windows
from dlm.data.prepared import prepared
from dlm.data.text import TextEncoder
from dlm.model.parent import resolve
from dlm.runs import digest
from dlm.runs.identity import run_id

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def encoded(monkeypatch):
    """The batches that were tokenised."""
    seen, call = [], TextEncoder.__call__
    monkeypatch.setattr(TextEncoder, "__call__", lambda self, batch: seen.append(batch.first) or call(self, batch))
    return seen


def test_rows_from_the_disk_are_those_of_texts_in_memory(tmp_path, tokenizer):
    documents = [*texts(60), "", "  ", *texts(40, 60)]
    rows = data_of(tokenizer, jsonl(tmp_path / "a.jsonl", documents)).train_rows
    full = [text for text in documents if text.strip()][:95]
    source = Windows(encode(tokenizer, full), tokenizer.eos_token_id)
    for index in range(64):
        rng, drawn = random.Random(f"0-{index}"), []
        rng.choices([source], [1.0])
        while (room := 32 - sum(len(d.ids) for d in drawn)) >= 4 and (document := rows.draw(source, rng, room)):
            drawn.append(document)
        assert rows.documents(index)[: len(drawn)] == drawn


def test_a_second_job_tokenises_nothing_and_other_content_or_another_tokenizer_is_another_corpus(
    tmp_path, tokenizer, encoded
):
    path = jsonl(tmp_path / "a.jsonl", texts(30))
    first, again = data_of(tokenizer, path), data_of(tokenizer, path)
    assert encoded == [1] and first.fingerprint() == again.fingerprint()
    jsonl(path, texts(31))
    changed = data_of(tokenizer, path)
    assert encoded == [1, 1] and changed.fingerprint() != first.fingerprint()
    other = AutoTokenizer.from_pretrained(resolve("pkg://dlm/assets/tiny"))
    other.add_tokens(["words"])
    assert data_of(other, path).fingerprint() != changed.fingerprint() and len(encoded) == 3
    other.truncation_side = "left"  # decides nothing here
    other("a long text", truncation=True, max_length=2)
    data_of(other, path)
    assert len(encoded) == 3


@pytest.mark.trains
def test_several_that_need_the_same_corpus_share_one_preparation(tmp_path, tokenizer, encoded, capsys):
    origin, found = Origin(str(jsonl(tmp_path / "a.jsonl", texts(3 * BATCH)))), []
    ranks = [
        threading.Thread(target=lambda: found.append(prepared(origin, TextEncoder(tokenizer, "text"))))
        for _ in range(3)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(encoded) == 3 and [len(corpus) for corpus in found] == [3 * BATCH] * 3


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_preparation_goes_on_where_it_was_kept_and_makes_the_same_corpus(
    kind, tmp_path, tokenizer, encoded, monkeypatch
):
    paths = [str(jsonl(tmp_path / f"{i}.jsonl", texts(2 * BATCH, i))) for i in range(2)]
    origin, encoder = Origin(paths), TextEncoder(tokenizer, "text")
    whole = prepared(origin, encoder, str(tmp_path / "whole"))
    monkeypatch.setattr("dlm.data.prepared.CHUNK", 1)  # every batch is kept
    encoded.clear()

    class Breaks(TextEncoder):
        def __call__(self, batch):
            if batch.unit == 1 and batch.first > 1:
                raise kind
            return super().__call__(batch)

    with pytest.raises(kind):
        prepared(origin, Breaks(tokenizer, "text"))
    (partial,) = (tmp_path / "cache" / "corpora").glob("*.partial")
    with (partial / "tokens.bin").open("ab") as file:
        file.write(b"written and not kept")
    assert encoded == [1, BATCH + 1, 1]
    corpus = prepared(origin, encoder)
    assert encoded == [1, BATCH + 1, 1, BATCH + 1]  # only the last one again
    assert corpus.record == whole.record and corpus.record["documents"] == 4 * BATCH
    assert not [*(tmp_path / "cache" / "corpora").glob("*.partial")]


def test_the_memory_of_a_preparation_does_not_grow_with_the_corpus(tmp_path, tokenizer, monkeypatch):
    """What has been written is held by nobody: the batches that are alive are those ahead, and the one in hand."""
    alive, most, call = 0, 0, TextEncoder.__call__

    class Counted(list):
        def __init__(self, rows):
            nonlocal alive, most
            super().__init__(rows)
            alive += 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    def counting(self, batch):
        object.__setattr__(batch, "rows", Counted(batch.rows))
        return call(self, batch)

    monkeypatch.setattr(TextEncoder, "__call__", counting)
    data_of(tokenizer, jsonl(tmp_path / "a.jsonl", texts(16 * BATCH)))
    assert most <= encoders.AHEAD + 2


def test_rows_are_read_while_others_are_tokenised(tmp_path, tokenizer):
    """A fast tokenizer takes all cores, and none of them waits for the reader."""
    read = threading.Event()

    class Waits(TextEncoder):
        def __call__(self, batch):
            assert batch.first > 1 or read.wait(20), "nothing was read beside the first batch"
            return super().__call__(batch)

    def batches():
        yield Batch(0, "a.jsonl", 1, [{"text": "one"}])
        yield Batch(0, "a.jsonl", 2, [{"text": "two"}])
        read.set()

    with encoding(Waits(tokenizer, "text"), 1) as encoded:
        assert [batch.first for batch, _ in encoded(batches())] == [1, 2]


class Counting(Sequence):
    """A sequence that counts how often it is asked for an element."""

    def __init__(self, values):
        self.values, self.asked = values, 0

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        self.asked += 1
        return self.values[index]


def test_a_draw_of_a_million_documents_asks_for_twice_as_much_as_one_of_a_thousand():
    asked = {}
    for number in (10**3, 10**6):
        source = Windows([[5]], 0)
        source.texts = Counting([np.array([5, 0])] * number)
        source.cum_lengths = Counting(range(2, 2 * number + 1, 2))
        rng = random.Random(0)
        for _ in range(100):
            source.draw(rng, 8)
        asked[number] = source.texts.asked + source.cum_lengths.asked
    assert asked[10**3] <= 100 * 13 and asked[10**6] <= 100 * 23


def test_another_process_opens_the_corpus_and_gets_none_of_its_tokens(tmp_path, tokenizer):
    data = data_of(tokenizer, jsonl(tmp_path / "a.jsonl", texts(400)))
    sent = pickle.dumps(data.train_rows)
    assert len(sent) < 2000 < data.corpora["text"].tokens.nbytes
    assert pickle.loads(sent).documents(5) == data.train_rows.documents(5)


def test_processes_tokenise_what_one_does(tmp_path, tokenizer, monkeypatch):
    """Batches are encoded some ahead, and written in order."""

    class Pool(encoders.Executor):
        def __init__(self, workers, context, begin, arguments):
            begin(*arguments)
            self.waiting = 0

        def submit(self, function, batch):
            future = encoders.Future()
            future.set_result(function(batch))
            return future

        def shutdown(self, cancel_futures):
            encoders.OWN.clear()

    path = jsonl(tmp_path / "a.jsonl", texts(12 * BATCH))
    one = data_of(tokenizer, path, cache=str(tmp_path / "one"))
    monkeypatch.setattr(encoders, "ProcessPoolExecutor", Pool)
    two = data_of(tokenizer, path, cache=str(tmp_path / "two"), num_proc=2)
    assert one.corpora["text"].record == two.corpora["text"].record


@pytest.mark.trains
@pytest.mark.slow
def test_processes_that_are_started_tokenise_what_one_does(tmp_path, tokenizer):
    path = jsonl(tmp_path / "a.jsonl", texts(3 * BATCH))
    one, two = (
        data_of(tokenizer, path, cache=str(tmp_path / "one")),
        data_of(tokenizer, path, cache=str(tmp_path / "two"), num_proc=2),
    )
    assert one.corpora["text"].record == two.corpora["text"].record


@pytest.mark.trains
def test_where_and_how_a_corpus_is_prepared_is_no_part_of_a_run():
    plain = run_id(resolved("data=text", "data.path=x.txt"))
    assert run_id(resolved("data=text", "data.path=x.txt", "data.cache=/scratch", "data.num_proc=8")) == plain
    assert run_id(resolved("data=text", "data.path=x.txt", "data.held_out=hash")) != plain
    assert run_id(resolved("data=text", "data.path=x.txt", "data.revision=abc")) != plain


def test_documents_that_are_held_out_by_hash_are_those_of_any_order_and_equal_ones_stay_together(tmp_path, tokenizer):
    documents = texts(200) + texts(200)
    shuffled = random.Random(0).sample(documents, len(documents))
    found = []
    for name, some in (("a", documents), ("b", shuffled)):
        corpus = data_of(tokenizer, jsonl(tmp_path / f"{name}.jsonl", some)).corpora["text"]
        parts = {split: corpus.part(split, "hash") for split in ("train", "val")}
        found.append({split: sorted(tokenizer.decode(ids[:-1]) for ids in part) for split, part in parts.items()})
        assert not set(found[-1]["train"]) & set(found[-1]["val"]) and 4 <= len(parts["val"]) <= 50
        assert parts["val"].num_tokens == sum(len(ids) for ids in parts["val"])
        assert [parts["val"].length(i) for i in range(4)] == [len(parts["val"][i]) for i in range(4)]
    assert found[0] == found[1]


def test_a_run_notices_that_a_file_of_several_has_changed(tmp_path):
    first, second = (jsonl(tmp_path / f"{name}.jsonl", texts(3)) for name in "ab")
    template = "data.template=" + str(second)
    cases = {("data=text", f"data.path={path}"): "data.path" for path in (f"[{first},{second}]", tmp_path)}
    cases |= {("data=text", f"data.path='{tmp_path}/*.jsonl'"): "data.path"}
    cases |= {("data=mixed", f"data.sources={{a:{{path:{second}}}}}"): "data.sources.a.path"}
    cases |= {("data=chat", f"data.path={first}", template): "data.template"}
    for overrides, option in cases.items():
        jsonl(second, texts(3))
        cfg = config(*overrides)
        before = inputs_of(cfg)[option]
        jsonl(second, texts(4))
        assert before["fingerprint"] != inputs_of(cfg)[option]["fingerprint"], overrides


def test_the_checksum_of_a_large_file_is_computed_once_for_all_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "LARGE", 10)
    path = jsonl(tmp_path / "a.jsonl", texts(3))
    expected = digest.kept_checksum(path)
    digest.cached_checksum.cache_clear()  # another process
    monkeypatch.setattr(digest, "checksum", lambda file: pytest.fail("it is read again"))
    assert digest.kept_checksum(path) == expected
