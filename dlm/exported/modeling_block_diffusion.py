"""A language model that decodes by block diffusion. It depends on torch and transformers only.

The weights and the layers are those of the parent class; only `generate` differs. Blocks of `config.block_size` tokens
are finished from left to right. Every forward predicts all masked tokens of the current block and commits the confident
ones, at least one. The same forward writes the previously finished tokens to the key-value cache, so the number of
forwards (NFE) is the number of denoising steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerBase, TopKLogitsWarper, TopPLogitsWarper
from transformers import Qwen3Config as ParentConfig
from transformers import Qwen3ForCausalLM as Parent
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.utils import ModelOutput

# Options that this decoding supports.
SUPPORTED = {"max_new_tokens", "max_length", "do_sample", "temperature", "top_p", "top_k", "eos_token_id"}
SUPPORTED |= {"pad_token_id", "stop_strings", "return_dict_in_generate", "threshold", "tokens_per_step"}
# Options of transformers that change no token here: the cache is always used, there are no beams and no assistant.
IGNORED = {"use_cache", "cache_implementation", "cache_config", "max_cache_len", "disable_compile", "compile_config"}
IGNORED |= {"bos_token_id", "decoder_start_token_id", "token_type_ids", "early_stopping", "length_penalty"}
IGNORED |= {"renormalize_logits", "remove_invalid_values", "low_memory", "synced_gpus", "is_assistant"}
IGNORED |= {"num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"}
IGNORED |= {"assistant_lookbehind", "target_lookbehind"}
IGNORED |= {"transformers_version", "_from_model_config", "trust_remote_code"}
# Options without effect at the value 1.
NEUTRAL_AT_1 = {"num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty", "guidance_scale"}
NEUTRAL_AT_1 |= {"encoder_repetition_penalty", "typical_p"}
# Options without effect in greedy decoding.
SAMPLING = {"min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}


class BlockDiffusionConfig(ParentConfig):
    """The parent's config under a new model type, so that without this code nothing loads the folder as an AR model."""

    model_type = f"block_diffusion_{ParentConfig.model_type}"


# transformers looks up how to rename and merge the weights of a checkpoint by model type (mixtures of experts).
if (mapping := get_checkpoint_conversion_mapping(ParentConfig.model_type)) is not None:
    register_checkpoint_conversion_mapping(BlockDiffusionConfig.model_type, mapping, overwrite=True)


@dataclass
class BlockDiffusionOutput(ModelOutput):
    """`sequences` [B, T]: the prompts and their continuations, padded on the right. `nfe` [B]: forwards per row."""

    sequences: Tensor | None = None
    nfe: Tensor | None = None


@dataclass
class CommitRule:
    """Commits the predictions whose probability exceeds `threshold`, or the `tokens_per_step` most probable ones."""

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
        """Sample tokens [K] from logits [K, V]. Also returns their probabilities [K] at temperature 1."""
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
        """The tokens of a block [K] and which of them to commit now [K]: nothing behind a predicted EOS before it. A
        committed EOS fills the masked positions to its right."""
        is_eos = torch.isin(token, self.eos_ids)
        ends = (is_eos & masked).int()
        candidates = masked & (ends.cumsum(0) - ends == 0)
        rank = confidence.masked_fill(~candidates, -torch.inf)
        commit = torch.arange(len(token), device=token.device) == rank.argmax()
        if self.tokens_per_step is not None:
            commit[rank.argsort(descending=True, stable=True)[: self.tokens_per_step]] = True  # ties as in argmax
        else:
            commit |= confidence > self.threshold
        commit &= candidates
        tail = ((commit & is_eos).cumsum(0) > 0) & masked & ~commit
        if token_shift and not (masked & ~commit & ~tail)[1:].any():
            commit[0] = masked[0]  # its score depends on the clean context only, so waiting cannot change it
            tail = ((commit & is_eos).cumsum(0) > 0) & masked & ~commit
        return torch.where(tail, self.eos_ids[:1], token) if len(self.eos_ids) else token, commit | tail


@dataclass
class StopStrings:
    """Strings that end a text. Raises `ValueError` for an empty string, or without a tokenizer."""

    strings: str | list[str] | None
    tokenizer: PreTrainedTokenizerBase | None

    def __post_init__(self):
        self.strings = [self.strings] if isinstance(self.strings, str) else self.strings or []
        if self.strings and self.tokenizer is None:
            raise ValueError("stop_strings are found in the text: give tokenizer= as well")
        if "" in self.strings:
            raise ValueError("a stop string must not be empty: every text holds it")

    def occur_in(self, tokens: Tensor) -> bool:
        text = self.tokenizer.decode(tokens)
        return any(string in text for string in self.strings)

    def __call__(self, tokens: Tensor) -> int | None:
        """The number of `tokens` [N] up to the end of the first stop string; None if there is none."""
        if not self.strings or not self.occur_in(tokens):
            return None
        return next(n for n in range(1, len(tokens) + 1) if self.occur_in(tokens[:n]))


def supported_options(options: dict[str, Any], configs: tuple[GenerationConfig | None, ...]) -> dict[str, Any]:
    """The supported options of a call, with defaults from `configs`, of which a later one overrides an earlier one;
    `temperature` is always set. Raises `ValueError` for an unsupported option that would change the tokens."""
    defaults = {name: value for config in configs if config for name, value in config.to_diff_dict().items()}
    if options.get("temperature") is not None:
        defaults.pop("do_sample", None)  # a temperature decides by itself whether to sample
    options = defaults | options
    greedy = options.get("do_sample") is False or not (options.get("do_sample") or options.get("temperature"))
    for name, value in options.items():
        unset = value is None or (not isinstance(value, Tensor) and not value) or (name in NEUTRAL_AT_1 and value == 1)
        if not (name in SUPPORTED | IGNORED or unset or (greedy and name in SAMPLING)):
            raise ValueError(f"{name}={value!r} is not to be had in block diffusion: leave it out")
    supported = {name: value for name, value in options.items() if name in SUPPORTED and value is not None}
    temperature = supported.get("temperature", 0.0 if greedy else 1.0)
    return supported | {"temperature": 0.0 if greedy and temperature >= 0 else temperature}


def ending(
    new: Tensor, max_new_tokens: int, block_done: bool, eos_ids: Tensor, stop: StopStrings
) -> tuple[Tensor, bool]:
    """The new tokens [N] up to EOS or a stop string, and whether the text has ended."""
    is_eos = torch.isin(new, eos_ids)
    ended = bool(is_eos.any()) or len(new) == max_new_tokens
    if is_eos.any():
        new = new[: int(is_eos.int().argmax()) + 1]
    until = stop(new) if ended or block_done else None
    return new[:until], ended or until is not None


class BlockDiffusionForCausalLM(Parent):
    """The parent's layers with the attention mask and the decoding of the converted diffusion model."""

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
        **options: Any,
    ) -> Tensor | BlockDiffusionOutput:
        """Continue every row of `input_ids` (or `inputs`) [B, P], one after the other, by at most `max_new_tokens`
        (default 256) or up to `max_length`. `attention_mask` [B, P] is 0 at padding.

        The commit rule is that of the config unless `threshold` or `tokens_per_step` is given. Decoding is greedy
        unless `temperature` or `do_sample` requests sampling (with `top_p`, `top_k` and `generator`). `eos_token_id` or
        one of `stop_strings`, searched with `tokenizer` at the end of each block, ends a text; `pad_token_id` pads
        shorter rows. A `generation_config` may hold all of these. Returns token ids [B, T], including EOS or the stop
        string; with `return_dict_in_generate` also the forwards per row. Raises `ValueError` for any other option that
        would change the tokens.
        """
        if (input_ids is None) == (inputs is None):
            raise ValueError("give the prompts as input_ids, or as inputs, [B, P]")
        if self.config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError(f"attn_implementation {self.config._attn_implementation!r} cannot be used: sdpa or eager")
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        options = supported_options(options, (self.generation_config, generation_config))
        input_ids = (inputs if input_ids is None else input_ids).to(self.device)
        rule, stop = self.commit_rule(options, generator), StopStrings(options.get("stop_strings"), tokenizer)
        prompts = self.prompts(input_ids, attention_mask)
        max_new_tokens = self.num_new_tokens(options, input_ids.shape[1], max(map(len, prompts)))
        outputs = [self.continue_one(prompt, max_new_tokens, rule, stop) for prompt in prompts]
        pad = next(p for p in (options.get("pad_token_id"), *rule.eos_ids.tolist(), 0) if p is not None)
        sequences = torch.cat([input_ids, pad_sequence([tokens for tokens, _ in outputs], True, pad)], 1)
        nfe = torch.tensor([nfe for _, nfe in outputs], device=self.device)
        output = BlockDiffusionOutput(sequences=sequences, nfe=nfe)
        return output if options.get("return_dict_in_generate") else sequences

    def prompts(self, input_ids: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
        """The prompts without padding, one tensor [P] per row. Raises `ValueError` if one holds the mask token."""
        is_token = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(self.device)
        prompts = [ids[keep.bool()] for ids, keep in zip(input_ids, is_token, strict=True)]
        if any(self.config.mask_token_id in prompt for prompt in prompts):
            raise ValueError(f"input_ids hold the mask token (id {self.config.mask_token_id}): it stands for no text")
        return prompts

    def commit_rule(self, options: dict[str, Any], generator: torch.Generator | None) -> CommitRule:
        """The requested commit rule, by default that of the config."""
        threshold, number = options.get("threshold"), options.get("tokens_per_step")
        if threshold is None and number is None:
            threshold, number = self.config.threshold, self.config.tokens_per_step
        eos_ids = torch.tensor(options.get("eos_token_id", []), dtype=torch.long, device=self.device).flatten()
        sampling = options["temperature"], options.get("top_p", 1.0)
        return CommitRule(threshold, number, *sampling, eos_ids, generator, options.get("top_k", 0))

    def num_new_tokens(self, options: dict[str, Any], columns: int, longest: int) -> int:
        """The maximal number of new tokens, given the padded length of the prompts (`columns`) and their longest.
        Raises `ValueError` if it is below 1 or the last block exceeds the model's positions."""
        new = options.get("max_new_tokens", options["max_length"] - columns if "max_length" in options else 256)
        if new < 1:
            raise ValueError(f"max_new_tokens {new} must be at least 1 (max_length counts the prompt of {columns} too)")
        size = self.config.block_size
        total, limit = -(-(longest + new) // size) * size, getattr(self.config, "max_position_embeddings", None)
        if limit is not None and total > limit:
            raise ValueError(
                f"a prompt of {longest} and max_new_tokens {new} need {total} positions in whole blocks, and the model "
                f"has {limit}: shorten the prompt or lower max_new_tokens"
            )
        return new

    def continue_one(
        self, prompt: Tensor, max_new_tokens: int, rule: CommitRule, stop: StopStrings
    ) -> tuple[Tensor, int]:
        """Continue one prompt [P]. Returns the new tokens [N] and the number of forwards."""
        config, size, begin = self.config, self.config.block_size, len(prompt)
        shift = int(config.token_shift)
        if shift and not begin:
            raise ValueError("an empty prompt cannot be continued with the token shift: begin it with a BOS token")
        length = -(-(begin + max_new_tokens) // size) * size  # whole blocks, as in training
        x = torch.full((length,), config.mask_token_id, device=self.device)
        x[:begin] = prompt
        masked = torch.arange(length + 1, device=self.device) >= begin  # the last entry is a sentinel
        start, written, nfe = begin // size * size, 0, 0  # the current block begins at `start`; `written` are cached
        token = torch.zeros(size, dtype=torch.long, device=self.device)
        confidence = torch.zeros(size, device=self.device)
        cache = DynamicCache() if config.cacheable else None
        whole = config.whole_canvas and not config.cacheable
        while True:
            end = length if whole else start + size * config.noisy_stream
            block = slice(start, start + size)
            reads = torch.arange(start, start + size, device=self.device) - shift  # the rows that predict the block
            # With the token shift, the first token of a block is scored once, when the token before it is written.
            scored = masked[block] & (reads >= written)
            logits = self.score(x[written:end], written, reads[scored] - written, cache)
            nfe += 1
            token[scored], confidence[scored] = rule.sample(logits)
            predicted, commit = rule(token, confidence, masked[block], config.token_shift)
            x[block] = torch.where(commit, predicted, x[block])
            masked[block] &= ~commit
            if cache is not None:
                written = start
                if end > start:  # the cache keeps finished tokens only
                    cache.crop(start - end)
            filled = int(masked.int().argmax())
            block_done = filled >= start + size
            new, ended = ending(x[begin:filled][:max_new_tokens], max_new_tokens, block_done, rule.eos_ids, stop)
            if ended:
                return new, nfe
            start += size * block_done

    def score(self, ids: Tensor, offset: int, rows: Tensor, cache: DynamicCache | None) -> Tensor:
        """Run one forward of `ids` [Q], the first of which is at position `offset`. Returns the logits [N, V] of
        `rows` [N], in which the mask token has probability 0."""
        k = torch.arange(offset + len(ids), device=self.device)
        q = k[offset:]
        masks = {name: self.mask(q[:, None], k, window) for name, window in self.config.attention_windows.items()}
        output = self(
            input_ids=ids[None],
            position_ids=q[None],
            attention_mask=masks if len(masks) > 1 else masks.popitem()[1],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=rows,
        )
        logits = output.logits[0].float()
        logits[:, self.config.mask_token_id] = -torch.inf
        return logits

    def mask(self, q: Tensor, k: Tensor, window: int | None) -> Tensor:
        """The additive attention mask [1, 1, Q, K] of positions `q` [Q, 1] and `k` [K]: a position sees its own and
        earlier blocks, or everything if nothing is cached; with a sliding `window`, only positions nearer than it."""
        size = self.config.block_size
        visible = k // size <= q // size if self.config.cacheable else (q >= 0) & (k >= 0)
        if window is not None:
            visible = visible & ((q - k).abs() < window)
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=q.device)
        return mask.masked_fill(~visible, torch.finfo(self.dtype).min)[None, None]
