"""Loads the models of a finished run, after verifying their checksums, onto the device where they compute. Every
command uses it; `opened` also takes an exported folder.

Code that may not depend on configs, such as a teacher, uses `dlm.model.parent.load_run`, which makes the same check.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from dlm.config.build import ar_denoiser, converted_denoiser, default_decoding, make
from dlm.config.exported import ExportedFolder, is_exported
from dlm.config.inputs import require_fingerprint, require_same
from dlm.decoding.base import Decoder
from dlm.model.denoiser import Denoiser
from dlm.model.device import AUTO, usable_device
from dlm.model.parent import Parent, load_parent
from dlm.runs.run import Run


class FinishedRun:
    """The dLM of a finished run and its AR parent, each loaded on first use, onto `device` (see `usable_device`).
    `folder` holds the converted model.

    Raises `ValueError`, before loading, if this machine has no such device, the run has no model, or a file of the
    model fails its checksum.
    """

    def __init__(self, run: Run, device: str = AUTO):
        self.device = usable_device(device)
        self.folder = run.trained_model()
        self.run, self.config = run, run.config

    @property
    def name(self) -> str:
        return self.run.id

    @cached_property
    def asked(self) -> tuple[str, ...] | None:
        """The families of tasks that the run is asked (see `PackedData`); None means those of short answers."""
        return make(self.config.data).asked

    @cached_property
    def converted(self) -> Parent:
        """The converted weights with their tokenizer, in the precision of training."""
        dtype = OmegaConf.select(self.config, "model.dtype", default="float32")
        return self.placed(load_parent(str(self.folder.absolute()), dtype=dtype, check=False))

    @cached_property
    def parent(self) -> Parent:
        """The run's parent, loaded again. Raises `ValueError` if its weights have changed since."""
        require_same(self.run, self.config, "model")
        parent, record = make(self.config.model, check=False), self.run.record.get("parent", {})
        began = f"run {self.run.id} began with a parent"
        require_fingerprint(began, record.get("fingerprint"), parent.source, parent.fingerprint())
        return self.placed(parent)

    def placed(self, loaded: Parent) -> Parent:
        """The same model, moved to the device."""
        loaded.model.to(self.device)
        return loaded

    @cached_property
    def ar(self) -> Denoiser:
        """The autoregressive parent as a `Denoiser`."""
        return ar_denoiser(self.parent)

    @cached_property
    def dlm(self) -> Denoiser:
        """The converted weights under the run's attention pattern and token shift."""
        return converted_denoiser(self.config, self.converted)

    @property
    def decoding(self) -> dict[str, Any]:
        """The config of the run's own decoder."""
        return OmegaConf.to_container(default_decoding(self.config), resolve=True)

    @property
    def decoder(self) -> Decoder:
        """The run's own decoder."""
        return make(self.decoding)


class Ready(NamedTuple):
    """All that decoding takes besides a request."""

    denoiser: Denoiser
    tokenizer: PreTrainedTokenizerBase
    decoder: Decoder


class Loaded(Ready):
    """The same three, and `processor`, which makes prompts of text and images; None of a model of text."""

    processor: ProcessorMixin | None = None


def opened(run: str, runs_dir: str | Path, device: str = AUTO) -> FinishedRun | ExportedFolder:
    """A finished run by its id, a unique beginning of it or its folder, or an exported folder by its path. Raises
    `ValueError` if there is no such run, or for what `FinishedRun` and `ExportedFolder` refuse."""
    folder = Path(run).expanduser()
    if is_exported(folder):
        return ExportedFolder(folder, device)
    return FinishedRun(Run.load(run, runs_dir), device)


def found(run: str | int | None, runs_dir: str | Path, device: str = AUTO) -> FinishedRun | ExportedFolder:
    """What `opened` finds, or of None the run that finished last."""
    return FinishedRun(Run.newest(runs_dir), device) if run is None else opened(str(run), runs_dir, device)


def load(run: str, runs_dir: str | Path, device: str = AUTO) -> Loaded:
    """What `opened` finds, ready to decode."""
    found = opened(run, runs_dir, device)
    loaded = Loaded(found.dlm, found.converted.tokenizer, found.decoder)
    loaded.processor = found.converted.processor
    return loaded
