"""The one door to a finished run: whatever wants its models comes through here, and so past their checksums.

Code below the configs, such as a teacher, has `dlm.model.parent.load_run`, which makes the same check.
"""

from __future__ import annotations

from functools import cached_property

from omegaconf import OmegaConf

from dlm.config.build import ar_denoiser, converted_denoiser, make
from dlm.config.inputs import require_fingerprint, require_same
from dlm.model.denoiser import Denoiser
from dlm.model.parent import Parent, load_parent
from dlm.runs.run import Run


class FinishedRun:
    """A finished run's dLM and its AR parent. What is asked for is loaded, once. `folder` holds the converted model.

    Raises `ValueError`, before anything is loaded, where the run has no model or a file of it is not what was written.
    """

    def __init__(self, run: Run):
        self.folder = run.trained_model()
        self.run, self.config = run, run.config

    @cached_property
    def converted(self) -> Parent:
        """The converted weights with their tokenizer, in the precision in which the run trained."""
        dtype = OmegaConf.select(self.config, "model.dtype", default="float32")
        return load_parent(str(self.folder.absolute()), dtype=dtype, check=False)

    @cached_property
    def parent(self) -> Parent:
        """The parent that the run began with, loaded anew. `ValueError` where it is not the same any more."""
        require_same(self.run, self.config, "model")
        parent, record = make(self.config.model, check=False), self.run.record.get("parent", {})
        began = f"run {self.run.id} began with a parent"
        require_fingerprint(began, record.get("fingerprint"), parent.source, parent.fingerprint())
        return parent

    @cached_property
    def ar(self) -> Denoiser:
        """The parent, autoregressive."""
        return ar_denoiser(self.parent)

    @cached_property
    def dlm(self) -> Denoiser:
        """The converted weights under the run's attention pattern and token shift."""
        return converted_denoiser(self.config, self.converted)
