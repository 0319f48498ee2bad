"""A corpus on the disk: prepared once, by whoever comes first, from wherever it was interrupted; drawn from in
O(log n); the rows that it gives are those of texts in memory."""

import gzip
import json
import lzma
import pickle
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import zstandard
from conftest import config, resolved
from transformers import AutoTokenizer

from dlm.attention.block import Block
from dlm.config.inputs import inputs_of
from dlm.data import prepared as preparing
from dlm.data.corpus import Corpus
from dlm.data.encoding import encode
from dlm.data.origin import BATCH, Batch, Origin
from dlm.data.packing import Windows
from dlm.data.prepared import encoding, prepared
from dlm.data.text import Text, TextEncoder
from dlm.model.parent import resolve
from dlm.runs import digest
from dlm.runs.identity import run_id

pytestmark = pytest.mark.usefixtures("own_cache")


def texts(number: int, begin: int = 0) -> list[str]:
    return [f"document {i} " + "of some words" * (i % 7) for i in range(begin, begin + number)]


def jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture
def encoded(monkeypatch):
    """The batches that were tokenised."""
    seen, call = [], TextEncoder.__call__
    monkeypatch.setattr(TextEncoder, "__call__", lambda self, batch: seen.append(batch.first) or call(self, batch))
    return seen


def data_of(tokenizer, path, **options):
    path = path if isinstance(path, list) else str(path)
    data = Text(path=path, length=32, batch_size=4, val_rows=2, **options)
    data.prepare(tokenizer, Block(8).tail, 64, 0)
    return data


def text_of(corpus: Corpus, tokenizer) -> list[str]:
    return [tokenizer.decode(corpus.ids(n)[:-1]) for n in range(len(corpus))]


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
    monkeypatch.setattr(preparing, "CHUNK", 1)  # every batch is kept
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
    assert most <= preparing.AHEAD + 2


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


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".tsv", ".parquet", ".json"])
def test_every_format_and_compression_is_read(suffix, tmp_path, tokenizer):
    path, documents = tmp_path / f"a{suffix}", texts(5)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()
    if suffix.startswith(".jsonl"):
        compress = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[path.suffix]
        path.write_bytes(compress(lines))
    elif suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_dict({"text": documents}).to_parquet(path)
    else:
        tsv = "n\ttext\n" + "".join(f"{n}\t{text}\n" for n, text in enumerate(documents))
        path.write_text(tsv if suffix == ".tsv" else json.dumps([{"text": text} for text in documents]))
    assert text_of(data_of(tokenizer, path).corpora["text"], tokenizer) == documents


def test_folders_globs_lists_and_saved_datasets_are_read_in_order(tmp_path, tokenizer):
    from datasets import Dataset, DatasetDict

    folder = tmp_path / "shards" / "inner"
    folder.mkdir(parents=True)
    first, second = jsonl(tmp_path / "shards" / "a.jsonl", texts(3)), jsonl(folder / "b.jsonl", texts(2, 3))
    (folder / "README.md").write_text("no data")
    DatasetDict({"held": Dataset.from_dict({"text": texts(5)})}).save_to_disk(tmp_path / "saved")
    Dataset.from_dict({"text": texts(5)}).save_to_disk(tmp_path / "one")
    cases = [(tmp_path / "shards", {}), (f"{tmp_path}/shards/**/*.jsonl", {}), ([str(first), str(second)], {})]
    cases += [(tmp_path / "saved", {"split": "held"}), (tmp_path / "one", {})]
    for path, options in cases:
        data = data_of(tokenizer, path, **options)
        assert text_of(data.corpora["text"], tokenizer) == texts(5), path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing/*.jsonl", "nothing/\\*.jsonl' matches no file"),
        ("empty", "empty' is a folder without any .txt"),
        (["a.jsonl", "absent.jsonl"], "absent.jsonl' does not exist"),
        (["a.jsonl", "b.jsonl"], "document 2 of|in document 2, but nothing"),
        ("saved", "has no split 'train': choose one of .*held"),
        ("???", "data.path is not set: give data.path=VALUE"),
        ([], r"data.path \[\] is empty"),
    ],
)
def test_what_cannot_be_read_is_named(path, message, tmp_path, tokenizer, monkeypatch):
    from datasets import Dataset, DatasetDict

    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    jsonl(tmp_path / "a.jsonl", texts(3))
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    DatasetDict({"held": Dataset.from_dict({"text": texts(5)})}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        data_of(tokenizer, path)
    assert not [*(tmp_path / "cache").glob("corpora/*.partial")]


def test_a_hub_dataset_is_streamed_by_its_names_and_offline_read_from_what_was_downloaded(
    tmp_path, tokenizer, monkeypatch
):
    import datasets

    asked = []

    def load_dataset(*args, streaming, **kwargs):
        asked.append((args, kwargs, streaming))
        made = datasets.Dataset.from_dict({"body": texts(5)})
        return made.to_iterable_dataset() if streaming else made

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    names = {"name": "sample", "split": "test", "revision": "abc", "field": "body"}
    for offline in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        data_of(tokenizer, "someone/corpus", **names, cache=str(tmp_path / offline))
        args, kwargs, streaming = asked[-1]
        assert args == ("someone/corpus", "sample") and kwargs == {"split": "test", "revision": "abc"}
        assert streaming is (offline == "0")


def test_another_process_opens_the_corpus_and_gets_none_of_its_tokens(tmp_path, tokenizer):
    data = data_of(tokenizer, jsonl(tmp_path / "a.jsonl", texts(400)))
    sent = pickle.dumps(data.train_rows)
    assert len(sent) < 2000 < data.corpora["text"].tokens.nbytes
    assert pickle.loads(sent).documents(5) == data.train_rows.documents(5)


def test_processes_tokenise_what_one_does(tmp_path, tokenizer, monkeypatch):
    """Batches are encoded some ahead, and written in order."""

    class Pool(preparing.Executor):
        def __init__(self, workers, context, begin, arguments):
            begin(*arguments)
            self.waiting = 0

        def submit(self, function, batch):
            future = preparing.Future()
            future.set_result(function(batch))
            return future

        def shutdown(self, cancel_futures):
            preparing.OWN.clear()

    path = jsonl(tmp_path / "a.jsonl", texts(12 * BATCH))
    one = data_of(tokenizer, path, cache=str(tmp_path / "one"))
    monkeypatch.setattr(preparing, "ProcessPoolExecutor", Pool)
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
