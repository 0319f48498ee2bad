"""The BD3LM objective: one noise level a row, a dense mask, weights 1/t."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass
class BD3LMConfig:
    output_dir: str
    block_size: int
    bf16: bool
    use_cpu: bool
    report_to: str
    eval_strategy: str


@dataclass
class BD3LMTrainer:
    args: BD3LMConfig
    model: Any
    processing_class: Any

    def _compute_loss_weights(self, t, inputs, masked_mask):
        return (1 / t)[:, None].expand_as(masked_mask)

    def compute_loss(self, model, inputs):
        ids = inputs["input_ids"]
        batch, length = ids.shape
        t = 1e-3 + (1 - 1e-3) * torch.rand(batch)
        masked = torch.rand((batch, length)) < t[:, None]
        noised = torch.where(masked, self.processing_class.mask_token_id, ids)
        position = torch.arange(length).repeat(2)
        block, clean = position // self.args.block_size, torch.arange(2 * length) >= length
        q, k = block[:, None], block[None]
        q_clean, k_clean = clean[:, None], clean[None]
        visible = (q == k) & (q_clean == k_clean) | (k < q) & k_clean
        logits = model(
            torch.cat([noised, ids], 1), attention_mask=visible[None, None], position_ids=position.expand(batch, -1)
        ).logits[:, :length]
        nll = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
        weights = self._compute_loss_weights(t=t, inputs=inputs, masked_mask=masked)
        return (nll * weights * masked).sum() / (inputs["labels"] != -100).sum()
