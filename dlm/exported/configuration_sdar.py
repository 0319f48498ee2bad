"""The config of a folder for the engines that serve SDAR. It depends on transformers only."""

from transformers import Qwen3Config as ParentConfig


class SDARConfig(ParentConfig):
    """Qwen3's config under the model type that the engines look for. They read `rope_theta` from the config itself,
    where transformers 5 keeps it in `rope_parameters` only, and take 10000 if it is not there."""

    model_type = "sdar"

    @property
    def rope_theta(self) -> float:
        """Raises `AttributeError` before it is known: transformers asks for it while it builds the config."""
        try:
            return self.rope_parameters["rope_theta"]
        except (KeyError, TypeError) as error:
            raise AttributeError("rope_theta") from error
