"""lm-evaluation-harness asks the server: `local-completions` gets what the harness gets in process."""

import json

import pytest
from harness_tasks import FAMILIES, GENERATION, ITEMS
from serving import running, speakers
from test_harness import model_of

from dlm.data import tasks
from dlm.decoding.threshold import Threshold

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")  # of lm_eval[api]
from lm_eval.tasks import TaskManager

pytestmark = [pytest.mark.trains, pytest.mark.slow]  # lm_eval alone takes ten seconds to import


def test_local_completions_equals_the_harness_in_process(tmp_path):
    by_mode, folder = speakers(), tmp_path / "tasks"
    folder.mkdir()
    asked = [{"text": e.prompt, "target": e.answer} for e in tasks.evaluation_set("test", 2)]
    (folder / "embedded.json").write_text(json.dumps(asked))
    (folder / "options.json").write_text("[]")
    (folder / "items.py").write_text(ITEMS)
    task = {"name": "embedded", "kind": "generate_until", "target": '"{{target}}"', "more": GENERATION}
    (folder / "embedded.yaml").write_text(FAMILIES.format(**task))
    dlm = by_mode["diffusion"]

    def evaluated(model, **options):
        found = lm_eval.simple_evaluate(
            model, tasks=["embedded"], task_manager=TaskManager(include_path=str(folder)), bootstrap_iters=0, **options
        )
        texts = [sample["filtered_resps"] for sample in sorted(found["samples"]["embedded"], key=lambda s: s["doc_id"])]
        return texts, found["results"]["embedded"]["exact_match,none"]

    with running(by_mode) as server:
        remote = {"model": "tiny", "base_url": f"{server.url}/v1/completions", "num_concurrent": 8}
        remote |= {"tokenizer_backend": None, "tokenized_requests": False}
        served = evaluated("local-completions", model_args=remote)
        assert server.service.batcher.lanes["diffusion"].session.members == {}
    here = evaluated(model_of(dlm.denoiser, dlm, tmp_path, Threshold(0.4)))
    assert served == here and len(here[0]) == len(asked) > 8 and len({text for (text,) in here[0]}) > 4
