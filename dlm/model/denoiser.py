"""The denoiser: a Hugging Face causal LM under an attention pattern → logits of the scored tokens. `dlm.model.layout`
says which hidden state scores which token.

    B rows of a batch        S columns that the network reads        N scored tokens        V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from dlm.attention.base import AttentionPattern
from dlm.attention.compilation import allow_versions
from dlm.attention.masks import attention_masks
from dlm.loss.base import Loss
from dlm.model.context import embedded, record
from dlm.model.head import without_decoder
from dlm.model.last_layer import LastLayer
from dlm.model.layout import Layout
from dlm.model.positions import num_positions
from dlm.model.readout import chunk_bytes, chunked
from dlm.trainable.gate import gate_of
from dlm.types import LossOutput, ModelInputs, Rows, Scored


class Denoiser(nn.Module, Layout):
    """A Hugging Face causal LM under an attention pattern. It computes logits only for the scored tokens.

    `layer_types` maps the names of the masks that the model's forward takes to their sliding window (None: full
    attention). Runs of tokens with `span_ids` see each other both ways where a document has images.

    Decoding and validation use `pattern`. A training forward uses the pattern of its `ModelInputs`, which this denoiser
    or a view of it `at` another block size has laid out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pattern: AttentionPattern,
        mask_id: int,
        token_shift: bool,
        layer_types: dict[str, int | None],
        span_ids: tuple[int, ...] = (),
    ):
        super().__init__()
        self.model, self.pattern, self.mask_id = model, pattern, mask_id
        self.token_shift, self.layer_types, self.span_ids = token_shift, layer_types, span_ids
        self.few_shapes, self.last_layer = False, LastLayer(model)
        self.last_masks = None, None  # the key and the masks of the last training forward
        self.row_bytes = 4 * model.get_output_embeddings().weight.shape[0]  # of logits in float32
        # Not as a submodule: it shares its modules with the model.
        object.__setattr__(self, "head", without_decoder(model))

    @property
    def positions(self) -> int | None:
        """The longest row that the model can read, in tokens."""
        return num_positions(self.model.config)

    @property
    def compiles(self) -> bool:
        """Whether something is compiled for each shape of a forward: attention on a GPU, or whole layers."""
        return self.few_shapes or self.model.device.type != "cpu"

    def compile(self, few_shapes: bool = True, **options) -> None:
        """Compile the model's layers as one function. With `few_shapes`, for GPUs, it is specialised on a few shapes to
        which forwards are padded. Without, for CPUs, where padding costs compute, it has dynamic shapes (and is
        specialised on a single row and on validation). A last layer whose MLP leaves rows out is then not compiled,
        since their number changes in every forward. `options` are passed to `torch.compile`. Raises `ValueError` for a
        model whose layers cannot be compiled."""
        layers = self.layers()
        allow_versions()
        for layer in layers if few_shapes or self.last_layer.mlp is None else layers[:-1]:
            layer.compile(dynamic=not few_shapes, **options)
        if few_shapes:
            self.few_shapes, self.last_layer.mlp = True, None

    def layers(self) -> list[nn.Module]:
        """The layers of the network, to be compiled. Raises `ValueError` if they cannot be."""
        if gate_of(self.model) is not None:
            raise ValueError("compile=true does not see which tokens gated adapters act at: set it to false")
        layers = [m for m in self.model.get_decoder().modules() if isinstance(m, GradientCheckpointingLayer)]
        if not layers:
            raise ValueError(f"compile=true finds no layers in {type(self.model).__name__}: set it to false")
        return layers

    def at(self, block_size: int) -> Denoiser:
        """A view of this denoiser with another block size. Both share the model."""
        view = super().at(block_size)
        view.last_masks = None, None
        return view

    def forward(self, inputs: ModelInputs) -> Float[Tensor, "N V"]:
        """The logits of the scored tokens, at least in float32. Those of the mask token are -inf: it is never
        predicted."""
        return self.logits(self.read(inputs))

    def loss(self, inputs: ModelInputs, scored: Scored, loss: Loss, num_tokens: int) -> LossOutput:
        """`loss(self(inputs), scored, num_tokens)`, without holding the logits of all scored tokens at once."""
        return self.loss_of(self.read(inputs), lambda logits, chunk: loss(logits, scored[chunk], num_tokens))

    def loss_of(
        self, hidden: Float[Tensor, "N D"], loss: Callable[[Float[Tensor, "M V"], slice], LossOutput]
    ) -> LossOutput:
        """The sum of `loss(logits, chunk)` over chunks of hidden states."""

        def chunk_loss(states: Float[Tensor, "M D"], chunk: slice) -> LossOutput:
            return loss(self.logits(states), chunk)

        return chunked(chunk_loss, hidden, self.model.get_output_embeddings(), self.row_bytes)

    def predictions(self, inputs: ModelInputs) -> Int[Tensor, " N"]:
        """The most probable token at every scored position."""
        chunk_size = max(chunk_bytes(inputs.input_ids.device) // self.row_bytes, 1)
        return torch.cat([self.logits(hidden).argmax(-1) for hidden in self.read(inputs).split(chunk_size)])

    def read(self, inputs: ModelInputs) -> Float[Tensor, "N D"]:
        """Run the network up to its head: the hidden states that score the tokens, in the order of `inputs.scored`."""
        masks = self.masks(inputs.rows, inputs.rows, inputs.layout, inputs.pattern)
        with self.last_layer.reading(inputs):
            return self.hidden(inputs.scored, attention_mask=masks, use_cache=False, **self.reads(inputs))

    def states(self, inputs: ModelInputs) -> list[Float[Tensor, "N D"]]:
        """The hidden states that score the tokens, after the embedding and after every layer. The last ones equal
        `read(inputs)`."""
        with self.last_layer.reading(inputs):
            output = self.model.get_decoder()(
                attention_mask=self.masks(inputs.rows, inputs.rows, inputs.layout, inputs.pattern),
                use_cache=False,
                output_hidden_states=True,
                **self.reads(inputs),
            )
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        return [state.flatten(0, 1)[inputs.scored] for state in states]

    def reads(self, inputs: ModelInputs) -> dict[str, Any]:
        """What the decoder reads in every column: ids and positions or, of documents with images, what the model's own
        forward makes of them."""
        if inputs.pictured is None:
            return {"input_ids": inputs.input_ids, "position_ids": inputs.position_ids}
        context = record(self.model, inputs.pictured).map(lambda t: t.flatten(0, 1))
        return context.at(inputs.source, embedded(self.model, inputs.input_ids), inputs.position_ids)

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """The model's head, applied to hidden states: logits in float32 at least, -inf for the mask token."""
        logits = self.head(inputs_embeds=hidden[None], use_cache=False).logits[0]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        source = logits if logits._base is None else logits._base
        if wide is logits and not source.is_leaf:  # autograd may have saved it, so it must not be written to
            wide = logits.clone()
        with torch.no_grad():  # a probability of 0 has no gradient
            wide[:, self.mask_id] = -torch.inf
        return wide

    def masks(
        self, q: Rows, k: Rows, layout: str = "", pattern: AttentionPattern | None = None, tiled: bool = False
    ) -> Any:
        """The `attention_mask` argument for rows `q` [B Q] over columns `k` [B K] under a `pattern`, by default that of
        the denoiser (see `attention_masks`, also for `tiled`). The masks of the previous forward are reused if it had
        the same `layout` and pattern."""
        implementation, pattern = self.model.config.get_text_config()._attn_implementation, pattern or self.pattern
        if not layout:
            return attention_masks(pattern, q, k, self.layer_types, implementation, tiled)
        # Autograd cannot save a tensor that was made in inference mode.
        key = layout, pattern, implementation, q.position.device, torch.is_inference_mode_enabled()
        if key != self.last_masks[0]:
            self.last_masks = key, attention_masks(pattern, q, k, self.layer_types, implementation)
        return self.last_masks[1]

    def hidden(
        self,
        scored: Int[Tensor, " N"],
        input_ids: Int[Tensor, "B S"] | None,
        position_ids: Int[Tensor, "*A B S"],
        attention_mask: Any,
        **kwargs: Any,
    ) -> Float[Tensor, "N D"]:
        """Run the network up to its head: the hidden states at the indices `scored`, flat in [B S]. `attention_mask` is
        the result of `masks`. With `input_ids` None the network reads the keyword `inputs_embeds` [B S D], in the scale
        of the model's input embedding. A model with several axes of positions may be given all of them."""
        output = self.model.get_decoder()(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, **kwargs
        )
        return output.last_hidden_state.flatten(0, 1)[scored]

    def score(self, scored: Int[Tensor, " N"], *args: Any, **kwargs: Any) -> Float[Tensor, "N V"]:
        """The logits at the indices `scored`; the arguments are those of `hidden`."""
        return self.logits(self.hidden(scored, *args, **kwargs))
