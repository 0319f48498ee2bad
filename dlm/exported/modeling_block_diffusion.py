"""A language model that decodes by block diffusion. It needs torch and transformers alone.

The weights and the layers are those of the parent class; `generate` is what differs. Blocks of `config.block_size`
tokens are finished from left to right. Every forward predicts all masked tokens of the current block and commits those
that are confident enough, at least one; it also writes the tokens that were finished before it to the key-value cache,
so the number of forwards (NFE) is the number of denoising steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedTokenizerBase,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers import Qwen3Config as ParentConfig
from transformers import Qwen3ForCausalLM as Parent
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.utils import ModelOutput

# What `generate` of transformers knows and this decoding has: how it samples, how long, where it ends.
HONOURED = {
    "max_new_tokens",
    "max_length",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "eos_token_id",
    "pad_token_id",
}
HONOURED |= {"stop_strings", "return_dict_in_generate", "threshold", "tokens_per_step"}
# What changes no token here: the cache is always used, there are no beams and no assistant.
MEANINGLESS = {
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "disable_compile",
    "compile_config",
}
MEANINGLESS |= {"bos_token_id", "decoder_start_token_id", "token_type_ids", "early_stopping", "length_penalty"}
MEANINGLESS |= {"renormalize_logits", "remove_invalid_values", "low_memory", "synced_gpus", "is_assistant"}
MEANINGLESS |= {"num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"}
MEANINGLESS |= {"transformers_version", "_from_model_config", "trust_remote_code"}
# What changes nothing at 1.
FACTORS = {"num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty", "encoder_repetition_penalty"}
FACTORS |= {"guidance_scale", "typical_p"}
OF_SAMPLING = {"min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}


class BlockDiffusionConfig(ParentConfig):
    """The parent's config under a type of its own: without this code nothing can load it, as an AR model say."""

    model_type = f"block_diffusion_{ParentConfig.model_type}"


# How the parent's weights are named and merged in a checkpoint is known by its type (mixtures of experts).
if (mapping := get_checkpoint_conversion_mapping(ParentConfig.model_type)) is not None:
    register_checkpoint_conversion_mapping(BlockDiffusionConfig.model_type, mapping, overwrite=True)


@dataclass
class BlockDiffusionOutput(ModelOutput):
    """`sequences` [B, T]: the prompts and what they gave, padded on the right. `nfe` [B]: the forwards of each."""

    sequences: Tensor | None = None
    nfe: Tensor | None = None


@dataclass
class CommitRule:
    """Which predictions are kept: those whose probability exceeds `threshold`, or the `tokens_per_step` best."""

    threshold: float | None
    tokens_per_step: int | None
    temperature: float
    top_p: float
    eos_ids: Tensor  # [E]
    generator: torch.Generator | None
    top_k: int = 0  # 0: all

    def __post_init__(self):
        if (self.threshold is None) == (self.tokens_per_step is None):
            raise ValueError("give either threshold or tokens_per_step")
        if (self.threshold or 0) < 0 or (self.tokens_per_step is not None and self.tokens_per_step < 1):
            raise ValueError(f"threshold {self.threshold} must be >= 0, tokens_per_step {self.tokens_per_step} >= 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature} must be >= 0 and top_p {self.top_p} lie in (0, 1]")

    def sample(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """A token for each of [K, V] logits, and its probability (at temperature 1)."""
        probability = logits.softmax(-1, dtype=torch.float32)
        if self.temperature == 0:
            token = logits.argmax(-1)
            return token, probability.gather(-1, token[:, None])[:, 0]
        scaled = logits.float() / self.temperature
        if self.top_k:
            scaled = TopKLogitsWarper(self.top_k)(None, scaled)
        if self.top_p < 1:
            scaled = TopPLogitsWarper(self.top_p)(None, scaled)
        token = torch.multinomial(scaled.softmax(-1), 1, generator=self.generator)
        return token[:, 0], probability.gather(-1, token)[:, 0]

    def __call__(self, token: Tensor, confidence: Tensor, masked: Tensor, token_shift: bool) -> tuple[Tensor, Tensor]:
        """The tokens of a block [K] and which of them to commit now. EOS comes behind every other token, the leftmost
        first, and fills what is to its right."""
        is_eos = torch.isin(token, self.eos_ids)
        offset = torch.arange(len(token), device=token.device)
        rank = torch.where(is_eos, -1 - offset / len(token), confidence).masked_fill(~masked, -torch.inf)
        keep = offset == rank.argmax()
        if self.tokens_per_step is not None:
            keep[rank.argsort(descending=True, stable=True)[: self.tokens_per_step]] = True  # ties as in argmax
        else:
            keep |= confidence > self.threshold
        keep &= masked
        if token_shift and not (masked & ~keep)[1:].any():
            keep[0] = masked[0]  # alone, a first token has its final score: the clean context alone gave it
        tail = ((keep & is_eos).cumsum(0) > 0) & masked & ~keep
        return torch.where(tail, self.eos_ids[:1], token) if len(self.eos_ids) else token, keep | tail


@dataclass
class StopStrings:
    """Where a text ends because of what it says."""

    strings: list[str]
    tokenizer: PreTrainedTokenizerBase | None

    def __post_init__(self):
        if self.strings and self.tokenizer is None:
            raise ValueError("stop_strings are found in the text: give tokenizer= as well")
        if "" in self.strings:
            raise ValueError("a stop string must not be empty: every text holds it")

    @classmethod
    def of(cls, strings: str | list[str] | None, tokenizer: PreTrainedTokenizerBase | None) -> StopStrings:
        return cls([strings] if isinstance(strings, str) else strings or [], tokenizer)

    def found(self, tokens: Tensor) -> bool:
        text = self.tokenizer.decode(tokens)
        return any(string in text for string in self.strings)

    def __call__(self, tokens: Tensor) -> int | None:
        """The number of `tokens` [N] that the first stop string ends at; None where there is none."""
        if not self.strings or not self.found(tokens):
            return None
        return next(n for n in range(1, len(tokens) + 1) if self.found(tokens[:n]))


def understood(asked: dict[str, Any]) -> dict[str, Any]:
    """Of what is asked for, in the words of transformers' `generate`, the part that decoding goes by. `ValueError` for
    what would change the tokens and is not to be had here."""
    greedy = asked.get("do_sample") is False or not (asked.get("do_sample") or asked.get("temperature"))
    for name, value in asked.items():
        idle = value is None or (not isinstance(value, Tensor) and not value) or (name in FACTORS and value == 1)
        if not (name in HONOURED | MEANINGLESS or idle or (greedy and name in OF_SAMPLING)):
            raise ValueError(f"{name}={value!r} is not to be had in block diffusion: leave it out")
    found = {name: value for name, value in asked.items() if name in HONOURED and value is not None}
    found["temperature"] = 0.0 if greedy and found.get("temperature", 0.0) >= 0 else found.get("temperature", 1.0)
    return found


class BlockDiffusionForCausalLM(Parent):
    """The parent with the attention and the decoding of the diffusion model that it was converted to."""

    config_class = BlockDiffusionConfig

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
        *,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        generator: torch.Generator | None = None,
        **given: Any,
    ) -> Tensor | BlockDiffusionOutput:
        """Continue every row of `input_ids` (or `inputs`) [B, P] (padding is where `attention_mask` is 0), one after
        the other, by at most `max_new_tokens` (256), or up to `max_length`.

        By default the commit rule is the one in the config, and decoding is greedy: `threshold` or `tokens_per_step`
        set another, `temperature`, `top_p`, `top_k`, `do_sample` and `generator` sample. `eos_token_id` and
        `stop_strings`, looked for with `tokenizer` at the end of each block, end a text; `pad_token_id` fills it up. A
        `generation_config` may hold all of these. Returns [B, T] token ids, EOS or the stop string included; with
        `return_dict_in_generate` also the forwards they took. Raises `ValueError` for any other setting that would
        change the tokens.
        """
        if (input_ids is None) == (inputs is None):
            raise ValueError("give the prompts as input_ids, or as inputs, [B, P]")
        if self.config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError(f"attn_implementation {self.config._attn_implementation!r} cannot be used: sdpa or eager")
        configs = [c.to_diff_dict() for c in (self.generation_config, generation_config) if c is not None]
        asked = {name: value for config in configs for name, value in config.items()}
        if given.get("temperature") is not None:
            asked.pop("do_sample", None)  # a temperature says enough
        asked = understood(asked | given | ({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}))
        input_ids = (inputs if input_ids is None else input_ids).to(self.device)
        rule, stop = self.commit_rule(asked, generator), StopStrings.of(asked.get("stop_strings"), tokenizer)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(self.device)
        prompts = [ids[keep.bool()] for ids, keep in zip(input_ids, real, strict=True)]
        if any(self.config.mask_token_id in prompt for prompt in prompts):
            raise ValueError(f"input_ids hold the mask token (id {self.config.mask_token_id}): it stands for no text")
        max_new_tokens = self.room(asked, input_ids.shape[1], max(map(len, prompts)))
        made = [self.continue_one(prompt, max_new_tokens, rule, stop) for prompt in prompts]
        pad = next(p for p in (asked.get("pad_token_id"), *rule.eos_ids.tolist(), 0) if p is not None)
        sequences = torch.cat([input_ids, pad_sequence([new for new, _ in made], True, pad)], 1)
        nfe = torch.tensor([n for _, n in made], device=self.device)
        return BlockDiffusionOutput(sequences=sequences, nfe=nfe) if asked.get("return_dict_in_generate") else sequences

    def commit_rule(self, asked: dict[str, Any], generator: torch.Generator | None) -> CommitRule:
        """The rule that is asked for, or else the one in the config."""
        threshold, number = asked.get("threshold"), asked.get("tokens_per_step")
        if threshold is None and number is None:
            threshold, number = self.config.threshold, self.config.tokens_per_step
        eos_ids = torch.tensor(asked.get("eos_token_id", []), dtype=torch.long, device=self.device).flatten()
        sampling = asked["temperature"], asked.get("top_p", 1.0)
        return CommitRule(threshold, number, *sampling, eos_ids, generator, asked.get("top_k", 0))

    def room(self, asked: dict[str, Any], columns: int, begin: int) -> int:
        """How many new tokens are asked for behind `columns` of prompts, the longest of `begin` tokens. `ValueError`
        where that is none, or the block that they end in lies beyond the model's positions."""
        new = asked.get("max_new_tokens", asked["max_length"] - columns if "max_length" in asked else 256)
        if new < 1:
            raise ValueError(f"max_new_tokens {new} must be at least 1 (max_length counts the prompt of {columns} too)")
        size = self.config.block_size
        row, limit = -(-(begin + new) // size) * size, getattr(self.config, "max_position_embeddings", None)
        if limit is not None and row > limit:
            raise ValueError(
                f"a prompt of {begin} and max_new_tokens {new} need {row} positions in whole blocks, and the model has "
                f"{limit}: shorten the prompt or lower max_new_tokens"
            )
        return new

    def continue_one(
        self, prompt: Tensor, max_new_tokens: int, rule: CommitRule, stop: StopStrings
    ) -> tuple[Tensor, int]:
        """The new tokens of one prompt [P] and the forwards they took."""
        config, size, begin = self.config, self.config.block_size, len(prompt)
        shift = int(config.token_shift)
        if shift and not begin:
            raise ValueError("an empty prompt cannot be continued with the token shift: begin it with a BOS token")
        length = -(-(begin + max_new_tokens) // size) * size  # whole blocks, as in training
        x = torch.full((length,), config.mask_token_id, device=self.device)
        x[:begin] = prompt
        masked = torch.arange(length + 1, device=self.device) >= begin  # the last one is a sentinel
        start, written, nfe = begin // size * size, 0, 0
        token = torch.zeros(size, dtype=torch.long, device=self.device)
        confidence = torch.zeros(size, device=self.device)
        cache = DynamicCache() if config.cacheable else None
        while True:
            end = start + size * config.noisy_stream if config.cacheable else length
            block = slice(start, start + size)
            scoring = torch.arange(start, start + size, device=self.device) - shift
            # The first token of a block is scored once, when the token before it is written.
            asked = masked[block] & (scoring >= written)
            logits = self.score(x[written:end], written, scoring[asked] - written, cache)
            nfe += 1
            token[asked], confidence[asked] = rule.sample(logits)
            new, keep = rule(token, confidence, masked[block], config.token_shift)
            x[block] = torch.where(keep, new, x[block])
            masked[block] &= ~keep
            if cache is not None:
                written = start
                if end > start:  # what is not finished leaves the cache
                    cache.crop(start - end)
            filled = int(masked.int().argmax())
            new = x[begin:filled][:max_new_tokens]
            is_eos = torch.isin(new, rule.eos_ids)
            ended, block_done = bool(is_eos.any()) or len(new) == max_new_tokens, filled >= start + size
            if is_eos.any():
                new = new[: int(is_eos.int().argmax()) + 1]
            until = stop(new) if ended or block_done else None
            if ended or until is not None:
                return new[:until], nfe
            start += size * block_done

    def score(self, ids: Tensor, offset: int, rows: Tensor, cache: DynamicCache | None) -> Tensor:
        """The logits [N, V] of `rows` in one forward of `ids`, which begin at position `offset`; the mask token is
        never predicted."""
        k = torch.arange(offset + len(ids), device=self.device)
        q = k[offset:]
        masks = {name: self.mask(q[:, None], k, window) for name, window in self.config.attention_windows.items()}
        logits = (
            self(
                input_ids=ids[None],
                position_ids=q[None],
                attention_mask=masks if len(masks) > 1 else masks.popitem()[1],
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=rows,
            )
            .logits[0]
            .float()
        )
        logits[:, self.config.mask_token_id] = -torch.inf
        return logits

    def mask(self, q: Tensor, k: Tensor, window: int | None) -> Tensor:
        """What position `q` sees of `k`, to be added to the scores [1, 1, Q, K]: its own and earlier blocks, or
        everything where nothing is cached; with a sliding `window`, nothing that far away in either direction."""
        size = self.config.block_size
        visible = k // size <= q // size if self.config.cacheable else (q >= 0) & (k >= 0)
        if window is not None:
            visible = visible & ((q - k).abs() < window)
        return torch.zeros(visible.shape, dtype=self.dtype, device=q.device).masked_fill(
            ~visible, torch.finfo(self.dtype).min
        )[None, None]
