"""The GPU tests run where only the packages of a GPU machine's image are, and on a CPU as well."""

import os
import re
import subprocess
import sys

import pytest
from common import ROOT

ABSENT = ("hydra", "omegaconf", "antlr4", "beartype", "hypothesis", "xdist", "datasets", "wandb")


@pytest.mark.trains
@pytest.mark.parametrize(
    "chosen",
    [pytest.param("not compiled", marks=pytest.mark.processes), pytest.param("compiled", marks=pytest.mark.slow)],
)
def test_the_gpu_tests_run_on_a_cpu_without_the_packages_of_the_other_tests(chosen, tmp_path):
    # In a process of its own: torch cannot trace through the shape checks of these tests.
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is absent')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "-p", "no:cacheprovider", "-k", f"not cuda and {chosen}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout
