"""The fixtures of all tests."""

import os
import shutil
import sys

import pytest
import study_sweeps
from common import ARCHITECTURES, CONF, ROOT, config, exit_code, shared, shorten_prose
from hydra.core.hydra_config import HydraConfig
from transformers import AutoTokenizer

from analysis.plan.sweep import load_sweep
from dlm.data import tasks
from dlm.data.scenes.rows import Scenes, picture_of
from dlm.runs.run import Run


@pytest.fixture(params=list(ARCHITECTURES))
def model(request):
    shared(request.param).zero_grad()  # what an earlier test left
    return shared(request.param)


@pytest.fixture
def unchecked(monkeypatch):
    """Attention patterns are not checked as they are built."""
    monkeypatch.setattr("dlm.attention.base.check_pattern", lambda pattern: None)


@pytest.fixture
def uncompiled(monkeypatch):
    """What decoding would compile runs as it is. Returns the functions that it asked to compile."""
    asked = []
    for module in ("step", "graph"):
        monkeypatch.setattr(f"dlm.decoding.engine.{module}.compiled", lambda part: asked.append(part) or part)
    return asked


@pytest.fixture(params=["llama", pytest.param("gemma3_text", id="gemma3")])
def full_or_sliding(request):
    """A model without and one with sliding windows: for what depends on nothing else of an architecture."""
    shared(request.param).zero_grad()
    return shared(request.param)


@pytest.fixture
def llama():
    shared("llama").zero_grad()
    return shared("llama")


@pytest.fixture(scope="session")
def table1():
    """The first seed of the paper's Table 1."""
    return load_sweep(ROOT / "sweeps" / "table1_attention.yaml", ["seed=0"])


@pytest.fixture(scope="session")
def linked_sweeps(tmp_path_factory):
    """The folder of sweeps that refer to one another."""
    path = tmp_path_factory.mktemp("sweeps")
    for name, text in study_sweeps.LINKED.items():
        (path / f"{name}.yaml").write_text(text)
    return path


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory) -> Run:
    """The folder that a finished training leaves, with the embedded parent for its result. Not to be changed."""
    run = Run.create(config(f"runs_dir={tmp_path_factory.mktemp('runs')}"), {})
    shutil.copytree(ROOT / "dlm" / "assets" / "tiny", run.model_folder)
    run.seal("model")
    run.update(status="finished", parent={"source": "tiny", "fingerprint": "abe774858db02fc7"})
    return run


@pytest.fixture
def finished_run(whole_run, tmp_path) -> Run:
    """A copy of it, in a runs folder of its own."""
    return Run(shutil.copytree(whole_run.folder, tmp_path / "runs" / whole_run.id))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> Run:
    """A small run that was trained, without evaluation. Not to be changed."""
    from small_runs import small  # here: few tests need what it imports

    from dlm.train import train

    with pytest.MonkeyPatch.context() as patch:
        shorten_prose(patch)
        patch.setenv("WANDB_MODE", "offline")
        runs_dir = tmp_path_factory.mktemp("small")
        return Run.load(train(small(runs_dir))["id"], runs_dir)


@pytest.fixture
def trained(small_run, runs_dir) -> Run:
    """A copy of it, in `runs_dir`."""
    return Run(shutil.copytree(small_run.folder, runs_dir / small_run.id))


@pytest.fixture
def results():
    """Those of a whole study, made by hand."""
    from shown import whole_results  # here, as above

    return whole_results()


@pytest.fixture
def of_one_seed():
    """The first seed of that study."""
    from shown import whole_results

    return whole_results((0,))


@pytest.fixture(scope="module")
def speaker():
    """The embedded parent that reads images, as a dLM."""
    from serving import seeing

    return seeing()


@pytest.fixture(scope="module")
def scenes():
    """Two pictures of the test split."""
    return [picture_of(scene.image) for scene in tasks.evaluation_set("test", 1, families=Scenes.asked)[:2]]


@pytest.fixture
def short_prose(monkeypatch):
    shorten_prose(monkeypatch)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Corpora are prepared in a folder of the tests, as are checksums kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_power_cut():
    """Nothing waits for the disk: a process that is killed loses nothing that it has written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Nothing is prepared yet."""
    monkeypatch.setenv("DLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer():
    """That of the embedded parent."""
    return AutoTokenizer.from_pretrained(ROOT / "dlm" / "assets" / "tiny")


@pytest.fixture
def runs_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path / "runs"


@pytest.fixture
def call(monkeypatch, capsys):
    """A command in this process: (exit code, stdout, stderr)."""

    def run(main, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [main.__module__, "--config-path", str(CONF), *arguments])
        return exit_code(main), *capsys.readouterr()

    yield run
    HydraConfig.instance().cfg = None


@pytest.fixture
def benchmark_command(tmp_path, call):
    """`dlm.benchmark` in this process: (exit code, stdout, stderr)."""

    import workbenches  # here: few tests need what it imports

    from dlm import benchmark

    return lambda *arguments: call(benchmark.main, f"runs_dir={tmp_path}", *workbenches.FAST, *arguments)


@pytest.fixture(scope="session")
def browser():
    """A Chromium, headless: `chromium`, `google-chrome`, or one that `playwright install chromium` fetched."""
    reason = "playwright is not here: pip install '.[browser]'"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    with playwright.sync_playwright() as driver:
        path = next(filter(None, map(shutil.which, names)), None)
        try:
            started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser here: install chromium, or playwright install chromium ({error.message[:80]})")
        yield started
        started.close()
