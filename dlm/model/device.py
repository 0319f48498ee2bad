"""The device on which models compute: chosen by name, and named in records."""

from __future__ import annotations

import torch

AUTO = "auto"


def usable_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is a device of it, else the CPU. Raises `ValueError` if this
    machine has no such device."""
    count = torch.cuda.device_count()
    on_gpu = ["cuda", *(f"cuda:{i}" for i in range(count))] if count else []
    if name == AUTO:
        return torch.device("cuda" if on_gpu else "cpu")
    known = [AUTO, "cpu", *on_gpu]
    if name not in known:
        raise ValueError(f"device {name!r} is not on this machine: choose one of {', '.join(known)}")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """What a record calls a device: the name of a GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
