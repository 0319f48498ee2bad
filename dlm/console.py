"""The terminal output of commands: errors in one line, and no notices of libraries."""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import transformers
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf.errors import MissingMandatoryValue

STOPPED = "stopped: the same command goes on where it was"

# Warnings without information about the run.
BENIGN = (
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*does not have many workers.*",
    ".*You have overridden .* but have passed in a `LightningDataModule`.*",  # intended: the module has the batch hooks
    ".*your dataloader is not resumable.*",  # it is: `Remaining` starts at the count in the checkpoint
    ".*Checkpoint directory .* exists and is not empty.*",  # it is that of a resumed run
    ".*is_gradient_checkpointing.*",
    ".*`srun` command is available.*",  # an `srun` on the PATH does not mean that the user wants SLURM
)


def is_sweep() -> bool:
    """Whether this job is one of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a Hydra main so that a `ValueError` becomes one line on stderr and exit code 1; HYDRA_FULL_ERROR=1 shows
    the traceback. In a sweep the error goes to the launcher, which continues with the next job."""

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        quiet()
        try:
            return main(*args, **kwargs)
        except (ValueError, MissingMandatoryValue) as error:
            if is_sweep() or os.environ.get("HYDRA_FULL_ERROR"):
                raise
            missing = isinstance(error, MissingMandatoryValue)
            text = f"{error.full_key} is not set: give {error.full_key}=VALUE" if missing else error
            print(f"error: {text}", file=sys.stderr)
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            print(STOPPED, file=sys.stderr)
            raise SystemExit(130) from None

    return run


def quiet() -> None:
    """Suppress progress bars, notices and benign warnings of libraries."""
    rank_zero = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
    for name in (*rank_zero, "lightning.pytorch.trainer.connectors.checkpoint_connector"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it cannot read is an error of our own
    transformers.utils.logging.disable_progress_bar()
    for message in BENIGN:
        warnings.filterwarnings("ignore", message)
