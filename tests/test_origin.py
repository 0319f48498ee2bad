"""Where the rows of a corpus come from: files of every format, folders, saved data sets and the hub."""

import gzip
import json
import lzma

import pytest
import zstandard
from corpora import data_of, jsonl, text_of, texts

pytestmark = pytest.mark.usefixtures("own_cache")


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
