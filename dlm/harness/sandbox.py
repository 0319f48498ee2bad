"""Runs a program that a model wrote, in a process of its own that can reach nothing (`dlm.harness.jail`).

This keeps accidents of a model from doing harm: loops, forks, deleted files, downloads. It is no defence against an
attacker, who could still read files, guess the verdict's pipe, or know a fault of the kernel.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

JAIL = Path(__file__).with_name("jail.py")
SEALED = "sealed"
SECONDS = 5  # on the CPU
WALL = 6  # times as long by the clock, on a machine that does other work as well
MEMORY = 2 * 2**30  # bytes of address space


@dataclass(frozen=True)
class Outcome:
    """Whether a program ended without an exception, and if not, what is known of the reason."""

    passed: bool
    reason: str


def run(program: str, seconds: int = SECONDS, memory: int = MEMORY) -> Outcome:
    """Run a Python program for at most `seconds` on the CPU (and `WALL` times as many by the clock), in `memory` bytes.
    It has no input, its output is thrown away, and its working directory is empty and temporary."""
    read, write = os.pipe()
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # none of ours, which may hold secrets
    environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    with tempfile.TemporaryDirectory() as folder, os.fdopen(read, "rb") as verdict:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-B", str(JAIL), str(write), str(seconds), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[write],
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        os.close(write)
        in_time = True
        try:
            process.communicate(program.encode(errors="surrogatepass"), timeout=WALL * seconds)
        except subprocess.TimeoutExpired:
            in_time = False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with whatever it started where forks are not refused
            process.wait()
        said = verdict.read().decode(errors="replace")
    seal, _, reason = said.partition("\n")
    if seal != SEALED:
        say_open(seal)
    if not in_time or process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome(False, "timed out")
    return Outcome(reason == "passed", reason or "ended by itself")


@functools.cache
def say_open(reason: str) -> None:
    """A note, once, that the kernel does not keep the programs from the network and from files."""
    how = f"with limits of time and memory only, not kept from the network and files ({reason or 'no verdict'})"
    print(f"the code that the model writes runs {how}", file=sys.stderr)
