"""The config of a language model that decodes by block diffusion. It depends on transformers only."""

from transformers import Qwen3Config as ParentConfig


class BlockDiffusionConfig(ParentConfig):
    """The parent's config under a new model type, so that without this code nothing loads the folder as an AR model."""

    model_type = f"block_diffusion_{ParentConfig.model_type}"
