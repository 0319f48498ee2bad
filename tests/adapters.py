"""Adapters in tests."""

import torch

from dlm.types import generator


def disturb(model, of: str = "lora_B") -> None:
    """Adapters that do something."""
    noise = generator(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if of in name:
                p += 0.3 * torch.randn(p.shape, generator=noise, dtype=torch.float64).to(p.dtype)
