"""Which weights a conversion may change."""

# Configs of runs name these two here, and a config is a run's identity.
from dlm.trainable.full import Full
from dlm.trainable.lora import Lora

__all__ = ["Full", "Lora"]
