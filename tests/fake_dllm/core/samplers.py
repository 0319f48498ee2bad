"""Block diffusion decoding without a cache."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class BD3LMSamplerConfig:
    max_new_tokens: int
    block_size: int
    steps_per_block: int
    temperature: float


@dataclass
class BD3LMSampler:
    model: Any
    tokenizer: Any

    @torch.no_grad()
    def sample(self, prompts, config):
        x, mask_id = torch.stack(prompts), self.tokenizer.mask_token_id
        size, k = config.block_size, config.block_size // config.steps_per_block
        for _ in range(config.max_new_tokens // size):
            x = torch.cat([x, torch.full((len(x), size), mask_id)], 1)
            block = torch.arange(x.shape[1]) // size
            visible = (block <= block[:, None])[None, None]
            while (x == mask_id).any():
                confidence, token = self.model(x, attention_mask=visible).logits.softmax(-1).max(-1)
                chosen = confidence.masked_fill(x != mask_id, -1).topk(k).indices
                x = x.scatter(1, chosen, token.gather(1, chosen))
        return x
