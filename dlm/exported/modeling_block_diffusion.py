"""A language model that decodes by block diffusion. It depends on torch and transformers only.

The weights and the layers are those of the parent class; only `generate` differs. Blocks of `config.block_size` tokens
are finished from left to right. Every forward predicts all masked tokens of the current block and commits the confident
ones, at least one. The same forward writes the previously finished tokens to the key-value cache, so the number of
forwards (NFE) is the number of denoising steps. The images of a prompt are read once, before the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerBase
from transformers import Qwen3ForCausalLM as Parent
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from .configuration_block_diffusion import BlockDiffusionConfig, ParentConfig
from .generation_block_diffusion import (
    CommitRule,
    StopStrings,
    ending,
    require_one_row,
    rows_of,
    supported_options,
    without_padding,
)
from .pictures_block_diffusion import COMMON, Pictures, idle, pictures_of, runs

# transformers looks up how to rename and merge the weights of a checkpoint by the class or the type of the model.
for name in (Parent.__name__, ParentConfig.model_type):
    if (mapping := get_checkpoint_conversion_mapping(name)) is not None:
        register_checkpoint_conversion_mapping(BlockDiffusionConfig.model_type, mapping, overwrite=True)
        break


@dataclass
class BlockDiffusionOutput(ModelOutput):
    """`sequences` [B, T]: the prompts and their continuations, padded on the right. `nfe` [B]: forwards per row."""

    sequences: Tensor | None = None
    nfe: Tensor | None = None


class BlockDiffusionForCausalLM(Parent):
    """The parent's layers with the attention mask and the decoding of the converted diffusion model."""

    config_class = BlockDiffusionConfig

    @property
    def reads_images(self) -> bool:
        return hasattr(self.config, "vision_config")

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
        (default 256) or up to `max_length`. `attention_mask` [B, P] is 0 at padding; without one, runs of
        `pad_token_id` at the ends of a row are padding.

        The commit rule is that of the config unless `threshold` or `tokens_per_step` is given. Decoding is greedy
        unless `temperature` or `do_sample` requests sampling (with `top_p`, `top_k` and `generator`), which may make
        `num_return_sequences` of every prompt. `eos_token_id`, one or several, or one of `stop_strings`, searched with
        `tokenizer` at the end of each block, ends a text; `pad_token_id` pads shorter rows. A `streamer` is given the
        prompt and then the tokens of every finished block. A `generation_config` may hold all of these. A model that
        reads images also takes what its processor returns for them, `pixel_values` and the like.

        Returns token ids [B * num_return_sequences, T], including EOS or the stop string; with
        `return_dict_in_generate` also the forwards per row. Raises `ValueError` for any other option that would change
        the tokens.
        """
        if (input_ids is None) == (inputs is None):
            raise ValueError("give the prompts as input_ids, or as inputs, [B, P]")
        if (implementation := self.config.get_text_config()._attn_implementation) not in ("sdpa", "eager"):
            raise ValueError(f"attn_implementation {implementation!r} cannot be used: sdpa or eager")
        arguments = self.of_pictures(options)
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        options = supported_options(options, (self.generation_config, generation_config))
        input_ids = (inputs if input_ids is None else input_ids).to(self.device)
        rule, stop = self.commit_rule(options, generator), StopStrings(options.get("stop_strings"), tokenizer)
        ends = rule.eos_ids.tolist()
        kept = without_padding(input_ids, attention_mask, options.get("pad_token_id"), ends)
        prompts = rows_of(input_ids, kept)
        if any(self.config.mask_token_id in prompt for prompt in prompts):
            raise ValueError(f"input_ids hold the mask token (id {self.config.mask_token_id}): it stands for no text")
        max_new_tokens = self.num_new_tokens(options, input_ids.shape[1], max(map(len, prompts)))
        copies, streamer = options.get("num_return_sequences", 1), options.get("streamer")
        require_one_row(streamer, copies * len(prompts))
        outputs = [
            self.continue_one(prompt, pictures, max_new_tokens, rule, stop, streamer)
            for prompt, pictures in zip(prompts, self.pictures(prompts, kept, arguments), strict=True)
            for _ in range(copies)
        ]
        pad = next(p for p in (options.get("pad_token_id"), *ends, 0) if p is not None)
        input_ids = input_ids.repeat_interleave(copies, 0)
        sequences = torch.cat([input_ids, pad_sequence([tokens for tokens, _ in outputs], True, pad)], 1)
        nfe = torch.tensor([nfe for _, nfe in outputs], device=self.device)
        output = BlockDiffusionOutput(sequences=sequences, nfe=nfe)
        return output if options.get("return_dict_in_generate") else sequences

    def of_pictures(self, options: dict[str, Any]) -> dict[str, Tensor]:
        """Take the arguments of the parent's forward that are about images out of the options of a call. Raises
        `ValueError` for videos."""
        names = signature(self.base_model.forward).parameters.keys() - COMMON if self.reads_images else ()
        found = {name: options.pop(name) for name in [*options] if name in names}
        if videos := [name for name, value in found.items() if "video" in name and value is not None]:
            raise ValueError(f"{videos[0]}: videos are not read: give images")
        return {name: value for name, value in found.items() if value is not None}

    def pictures(
        self, prompts: list[Tensor], kept: Tensor, arguments: dict[str, Tensor]
    ) -> list[Pictures] | list[None]:
        """The pictures of every prompt, whose tokens are those of the call that are `kept` [B, P]; None if none has
        any. Raises `ValueError` for image tokens without images, and for video tokens."""
        if "pixel_values" not in arguments:
            for kind, remedy in (("image", "give the pixel_values of the processor"), ("video", "videos are not read")):
                token = getattr(self.config, f"{kind}_token_id", None)
                if self.reads_images and token is not None and any(token in prompt for prompt in prompts):
                    raise ValueError(f"input_ids hold {kind} tokens (id {token}): {remedy}")
            return [None] * len(prompts)
        arguments = {name: value.to(self.device) for name, value in arguments.items()}
        arguments |= {
            name: pad_sequence(rows_of(value, kept), True)
            for name, value in arguments.items()
            if value.shape == kept.shape
        }
        return pictures_of(self, prompts, arguments)

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
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        total = -(-(longest + new) // size) * size
        if limit is not None and total > limit:
            raise ValueError(
                f"a prompt of {longest} and max_new_tokens {new} need {total} positions in whole blocks, and the model "
                f"has {limit}: shorten the prompt or lower max_new_tokens"
            )
        return new

    def continue_one(
        self,
        prompt: Tensor,
        pictures: Pictures | None,
        max_new_tokens: int,
        rule: CommitRule,
        stop: StopStrings,
        streamer: BaseStreamer | None,
    ) -> tuple[Tensor, int]:
        """Continue one prompt [P] with its `pictures`. Returns the new tokens [N] and the number of forwards. The
        `streamer` gets the prompt, and the new tokens of every block when it is finished: none is ever taken back."""
        config, size, begin, shown = self.config, self.config.block_size, len(prompt), 0
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
        span = None if pictures is None else self.spans(pictures, start, length)
        if streamer is not None:
            streamer.put(prompt.cpu())
        while True:
            end = length if whole else start + size * config.noisy_stream
            block = slice(start, start + size)
            reads = torch.arange(start, start + size, device=self.device) - shift  # the rows that predict the block
            # With the token shift, the first token of a block is scored once, when the token before it is written.
            scored = masked[block] & (reads >= written)
            logits = self.score(x[written:end], written, reads[scored] - written, cache, pictures, span)
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
            if streamer is not None and (ended or block_done):
                streamer.put(new[shown:].cpu())
                shown = len(new)
            if ended:
                if streamer is not None:
                    streamer.end()
                return new, nfe
            start += size * block_done

    def spans(self, pictures: Pictures, start: int, length: int) -> Tensor | None:
        """The number of the run of image tokens that see one another both ways, for every place [length]; -1 where
        there is none. None: no token does. A run ends with the finished blocks, that is at `start`: what is behind is
        not in the cache when they are written into it."""
        if not (self.config.clean_context and pictures.in_span.any()):
            return None
        found = runs(pictures.in_span[:start])
        return torch.cat([found, found.new_full((length - start,), -1)])

    def score(
        self,
        ids: Tensor,
        offset: int,
        rows: Tensor,
        cache: DynamicCache | None,
        pictures: Pictures | None,
        span: Tensor | None,
    ) -> Tensor:
        """Run one forward of `ids` [Q], the first of which is at place `offset`. Returns the logits [N, V] of `rows`
        [N], in which the mask token has probability 0."""
        k = torch.arange(offset + len(ids), device=self.device)
        q = k[offset:]
        masks = {name: self.mask(q[:, None], k, window, span) for name, window in self.config.attention_windows.items()}
        reads = {"input_ids": ids[None], "position_ids": q[None]}
        hidden = self.get_decoder()(
            **reads if pictures is None else pictures.reads(self, ids, q),
            attention_mask=masks if len(masks) > 1 else masks.popitem()[1],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        with idle(self.base_model if self.reads_images else self.get_decoder()):  # the head alone
            logits = self(inputs_embeds=hidden[:, rows], use_cache=False).logits[0].float()
        logits[:, self.config.mask_token_id] = -torch.inf
        return logits

    def mask(self, q: Tensor, k: Tensor, window: int | None, span: Tensor | None) -> Tensor:
        """The additive attention mask [1, 1, Q, K] of places `q` [Q, 1] and `k` [K]: a place sees its own and earlier
        blocks and its `span`, or everything if nothing is cached; with a sliding `window`, only places nearer than
        it."""
        size = self.config.block_size
        visible = k // size <= q // size if self.config.cacheable else (q >= 0) & (k >= 0)
        if span is not None:
            visible = visible | ((span[q] == span[k]) & (span[q] >= 0))
        if window is not None:
            visible = visible & ((q - k).abs() < window)
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=q.device)
        return mask.masked_fill(~visible, torch.finfo(self.dtype).min)[None, None]
