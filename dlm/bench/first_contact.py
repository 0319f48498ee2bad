"""The first ten minutes with a GPU: `python -m dlm.bench.first_contact [--device cuda] [--scale full] [--out FILE]`.

Does it compute the right thing, and how fast is it? Each item is a process of its own with its own time limit, the most
valuable first; one that fails costs one line. Every line of JSON is on the disk before the next item begins. Weights
are random, of real shapes: no network, no test package. On a CPU (`--device cpu --scale tiny`) the same items run as a
rehearsal, with nothing compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LIMITS = {  # seconds, in the order of value; most of them go into compiling
    "ceilings": 40,
    "attention": 90,
    "small model": 120,
    "train 1.5B": 140,
    "decode 1.5B": 90,
    "decode 8B": 100,
    "train 8B": 90,
    "decode 1.5B, a batch": 120,
    "decode 4B": 60,
    "Hugging Face": 30,
}


def measure(item: str, device: str, scale: str, peaks: dict[str, float], limit: float, folder: Path) -> dict[str, Any]:
    """Run an item in a process of its own: its result, or its error and what it had measured before, and its seconds.
    What it writes on stderr is in the file `<item>.log` of the folder."""
    result, log, began = folder / "result.json", folder / f"{item}.log", time.perf_counter()
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dlm.bench.contact_items", item, device, scale, json.dumps(peaks), str(result)]
    # One cache for all items: a kernel of one shape is compiled once.
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")} | os.environ
    line: dict[str, Any] = {"item": item}
    with log.open("w") as stderr:
        try:
            done = subprocess.run(command, stderr=stderr, timeout=limit, env=environment)  # noqa: S603
            if done.returncode:
                line["error"] = last_line(log.read_text())
        except subprocess.TimeoutExpired:
            line["error"] = f"it took more than {limit:.0f} s"
    if result.exists():
        line["result"] = json.loads(result.read_text())
    return line | {"seconds": round(time.perf_counter() - began, 1)}


def last_line(text: str) -> str:
    """The last line of an error that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next(
        (line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it ended without a word"
    )


def contact(device: str, scale: str, seconds: float, out: Path, only: list[str]) -> list[dict[str, Any]]:
    """Run the items in turn until `seconds` are over, writing a line of JSON for each to the file `out`, and their logs
    to the folder of that name. Raises `ValueError` for an unknown item."""
    unknown = set(only) - LIMITS.keys()
    if unknown:
        raise ValueError(f"--only {', '.join(sorted(unknown))!r} is unknown: choose from {', '.join(LIMITS)}")
    lines: list[dict[str, Any]] = []
    began, peaks, folder = time.perf_counter(), {}, out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    with out.open("w") as file:
        for item in only or LIMITS:
            left = seconds - (time.perf_counter() - began)
            if left < 5:
                line: dict[str, Any] = {"item": item, "error": "no time was left"}
            else:
                line = measure(item, device, scale, peaks, min(LIMITS[item], left), folder)
            if item == "ceilings" and "result" in line:
                peaks = {name: line["result"][name] for name in ("tflops", "gbs")}
            lines.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
            print(json.dumps(line), flush=True)
    return lines


def is_failed(line: dict[str, Any]) -> bool:
    """Whether an item broke off or found something wrong."""
    return "error" in line or line["result"].get("ok") is False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--scale", default="full", choices=["full", "tiny"], help="tiny: a rehearsal of seconds")
    parser.add_argument("--seconds", type=float, default=600, help="all items together (600)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/first_contact.jsonl"), help="lines of JSON")
    parser.add_argument("--only", nargs="*", default=[], metavar="ITEM", help=f"some of: {', '.join(LIMITS)}")
    options = parser.parse_args()
    try:
        lines = contact(options.device, options.scale, options.seconds, options.out, options.only)
    except ValueError as error:
        parser.error(str(error))
    failed = [line["item"] for line in lines if is_failed(line)]
    print(f"lines: {options.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
