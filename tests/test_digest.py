"""Names made of contents: equal to what files and runs of earlier versions are called."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from common import ROOT
from safetensors.torch import save_file

from dlm.model.parent import load_parent
from dlm.runs.digest import checksum, digest, fingerprint, weights_fingerprint
from dlm.runs.run import measurement_file

OLD_RUN = ROOT / "tests" / "data" / "old_run"


def test_a_digest_is_the_beginning_of_the_sha256_of_the_values_with_sorted_keys():
    values = {"b": [1, 2.5, None], "a": {"y": True, "x": "τ"}}
    text = r'{"a": {"x": "\u03c4", "y": true}, "b": [1, 2.5, null]}'
    assert json.loads(text) == values
    whole = hashlib.sha256(text.encode()).hexdigest()
    assert (digest(values), digest(values, 8), digest(values, 16)) == (whole[:12], whole[:8], whole[:16])


def test_what_was_written_by_earlier_versions_keeps_its_name():
    record = json.loads((OLD_RUN / "run.json").read_text())
    found, _ = record.pop("checksum"), record.pop("sealed")
    assert digest(record, 16) == found
    assert checksum(OLD_RUN / "config.yaml") == hashlib.sha256((OLD_RUN / "config.yaml").read_bytes()).hexdigest()
    assert measurement_file({"_target_": "dlm.measurement.masked.Masked", "draws": 10}) == (
        "measurements/masked-5439f456.json"
    )
    assert load_parent("pkg://dlm/assets/tiny", check=False).fingerprint() == record["parent"]["fingerprint"]


def test_the_fingerprint_of_a_folder_changes_with_any_byte_of_its_weights_and_with_nothing_else(tmp_path):
    (tmp_path / "adapters").mkdir()
    files = [tmp_path / "model.safetensors", tmp_path / "adapters" / "more.safetensors"]
    for seed, file in enumerate(files):
        save_file({"w": torch.arange(8.0) + seed}, file)
    before = weights_fingerprint(tmp_path)
    digests = sorted((str(f), hashlib.sha256(f.read_bytes()).digest()) for f in files)
    assert before == hashlib.sha256(b"".join(d for _, d in digests)).hexdigest()[:16]
    (tmp_path / "config.json").write_text("{}")
    assert weights_fingerprint(tmp_path) == before
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert weights_fingerprint(tmp_path) != before
        file.write_bytes(whole)
    assert weights_fingerprint(tmp_path) == before


def test_a_fingerprint_is_that_of_all_parts_together():
    assert fingerprint([b"ab", memoryview(b"c")]) == fingerprint([b"abc"]) != fingerprint([b"acb"])


# Keys of what lives no longer than a process, and what decides the split of prompts, scenes and documents.
ELSEWHERE = {"dlm/types.py", "dlm/data/example.py", "dlm/data/scenes/__init__.py", "dlm/data/text.py"}


@pytest.mark.parametrize("folder", ["dlm", "analysis"])
def test_nothing_else_makes_digests_of_its_own(folder):
    own = {p.relative_to(ROOT).as_posix() for p in Path(ROOT, folder).rglob("*.py") if uses_hashlib(p)}
    assert own - ELSEWHERE - {"dlm/runs/digest.py"} == set()


def uses_hashlib(path: Path) -> bool:
    return re.search(r"^(import|from) hashlib", path.read_text(encoding="utf-8"), re.MULTILINE) is not None
