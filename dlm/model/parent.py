"""Load any Hugging Face causal LM, also one that sees images, as a parent, give it a mask token, and refuse models that
cannot be converted.

No architecture is treated specially. A few forwards decide whether a model can be converted: its logits must depend on
the attention mask and the positions that it is given, and on nothing else (`dlm.model.probe`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module, resources
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from dlm.attention import block_sparse
from dlm.errors import one_line
from dlm.model.deferred import Deferred
from dlm.model.device import usable_device
from dlm.model.eos import require_eos
from dlm.model.image_probe import check_images
from dlm.model.implementation import IMPLEMENTATIONS, supported, with_attention
from dlm.model.layers import layer_types
from dlm.model.one_axis import apply_one_axis, mark_of, mark_one_axis
from dlm.model.probe import check_convertible
from dlm.model.vision import auto_class, example_document, load_config, load_processor
from dlm.model.vocabulary import add_mask_token, choose_mask_token, fit_vocabulary
from dlm.model.weights import require_finite, require_plain_weights
from dlm.runs.digest import fingerprint
from dlm.runs.run import Run
from dlm.trainable.adapters import adapter_weights, base_weights
from dlm.trainable.gate import restore_gated

PACKAGE_PREFIX = "pkg://"
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


@dataclass
class Parent:
    """A causal LM that can be converted, with its tokenizer. `mask_id` is the id of its mask token. `layer_types` maps
    the names of the masks that its forward takes to their sliding window in tokens (None: full attention). `source`
    describes its origin in messages. One that reads images has a `processor`, which makes tensors of them, and maybe
    `span_ids`, the tokens of images that see each other both ways. `deferred` is where the weights of empty layers are
    (`dlm.model.skeleton`)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    mask_id: int
    layer_types: dict[str, int | None]
    source: str
    processor: ProcessorMixin | None = None
    span_ids: tuple[int, ...] = ()
    deferred: Deferred | None = None

    @property
    def reader(self) -> PreTrainedTokenizerBase | ProcessorMixin:
        """What makes prompts of questions: the processor, if there is one, else the tokenizer."""
        return self.tokenizer if self.processor is None else self.processor

    def save(self, folder: str | Path) -> None:
        """Save the tokenizer and, of a model that reads images, the processor."""
        self.tokenizer.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        """A weight of the model by its name, on the CPU: `tensor`, or what is to be in its place if it is empty."""
        return self.deferred.read(name).to(tensor.dtype) if tensor.is_meta else tensor.detach().cpu()

    def fingerprint(self) -> str:
        """A hash of every weight, which identifies the parent in records. Zero-initialised adapters are ignored."""
        weights, adapters = base_weights(self.model), adapter_weights(self.model)
        if any(tensor.any() for name, tensor in adapters.items() if "lora_B" in name):
            weights |= adapters
        bits = ((n.encode(), self.weight(n, t).contiguous().view(torch.uint8)) for n, t in sorted(weights.items()))
        parts = (part for name, tensor in bits for part in (name, tensor.numpy().data))
        return fingerprint(chain(mark_of(self.model), parts))


class Loading(TypedDict, total=False):
    """The arguments of `load_parent` that other loaders pass on to it."""

    mask_token: str | None
    attn_implementation: str
    dtype: str
    check: bool
    one_axis: bool


def load_parent(
    path: str,
    mask_token: str | None = None,
    attn_implementation: str = block_sparse.NAME,
    dtype: str = "float32",
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    check: bool = True,
    one_axis: bool = False,
) -> Parent:
    """A parent from a hub id, a folder, or `pkg://package/folder` inside an installed package.

    `mask_token` names the mask token; the default is the tokenizer's, else a new one. Only safetensors (or `gguf_file`,
    through transformers) are read, and code that comes with a model runs only with `trust_remote_code`. With `check`,
    forwards test whether it can be converted. `one_axis`: see `dlm.model.one_axis`. Raises `ValueError` if the model
    cannot be found or converted."""
    require_loadable(dtype, attn_implementation)
    folder = resolve(path)
    options = reading_options(gguf_file, revision, trust_remote_code)
    try:
        kind = auto_class(load_config(folder, options))
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        (model, loading_info), attn_implementation = supported(
            partial(load_model, kind, folder, DTYPES[dtype], options), attn_implementation
        )
    except Exception as error:  # transformers raises many types; all mean that the parent cannot be loaded
        raise ValueError(
            f"model.path {path!r} could not be loaded as a causal LM: {one_line(error)}. It must be a Hugging Face hub "
            f"id or a folder with config.json, safetensors weights and a tokenizer{hint(error)}"
        ) from error
    require_plain_weights(model, path, sorted(loading_info["missing_keys"]), gguf_file is not None)
    require_finite(model, path, dtype)
    model = with_attention(model, attn_implementation)
    processor = None if kind is AutoModelForCausalLM else load_processor(folder, tokenizer, options)
    if one_axis:
        mark_one_axis(model, None if processor is None else example_document(processor))
    parent = as_parent(model, tokenizer, path, mask_token, check, processor)
    restore_gated(model, parent.mask_id, Path(folder))
    return parent


def load_tokenizer(
    path: str,
    mask_token: str | None = None,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **_: Any,
) -> PreTrainedTokenizerBase:
    """The tokenizer that `load_parent` gives a parent, without the weights. Raises `ValueError` if there is none."""
    options = reading_options(gguf_file, revision, trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(path), **options)
    except Exception as error:  # transformers raises many types
        raise ValueError(f"model.path {path!r} has no tokenizer that could be loaded: {one_line(error)}") from error
    require_eos(tokenizer, path)
    choose_mask_token(tokenizer, mask_token)
    return tokenizer


def require_loadable(dtype: str, attn_implementation: str) -> None:
    """Raises `ValueError` for a precision or an attention that no parent can be loaded with."""
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype {dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    if attn_implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"model.attn_implementation {attn_implementation!r} does not take an arbitrary mask: choose one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )


def reading_options(gguf_file: str | None, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """The arguments with which transformers reads all that is in a parent's folder."""
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    return options if gguf_file is None else options | {"gguf_file": gguf_file}


def load_model(
    kind: type, folder: str, dtype: torch.dtype, options: dict[str, Any], implementation: str
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model of a folder, of the class `kind` of transformers, and what transformers says of its loading."""
    return kind.from_pretrained(
        folder,
        attn_implementation=implementation,
        dtype=dtype,
        use_safetensors=None if "gguf_file" in options else True,
        output_loading_info=True,
        **options,
    )


def hint(error: Exception) -> str:
    """The option to set, if the error of transformers points to one; else an empty string."""
    if "trust_remote_code" in str(error):
        return "; to run the code that comes with it, set model.trust_remote_code=true"
    return ""


def new_parent(
    config: dict[str, Any],
    tokenizer: str,
    seed: int,
    attn_implementation: str = block_sparse.NAME,
    dtype: str = "float32",
    device: str = "cpu",
    check: bool = True,
) -> Parent:
    """A parent with random weights. `config` is a Hugging Face config with its `model_type`; the vocabulary size is
    that of the tokenizer unless `config` has a larger one. The weights are initialised on `device`: for a large model
    this takes minutes on a CPU. Raises `ValueError` for an unknown `dtype` or too small a vocabulary."""
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype {dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    loaded_tokenizer = AutoTokenizer.from_pretrained(resolve(tokenizer))
    special = {"eos_token_id": loaded_tokenizer.eos_token_id, "pad_token_id": loaded_tokenizer.pad_token_id}
    values = {"vocab_size": len(loaded_tokenizer)} | special | config
    model_type = values.pop("model_type")
    if values["vocab_size"] < len(loaded_tokenizer):
        raise ValueError(
            f"model.config.vocab_size {values['vocab_size']} must be at least the tokenizer's {len(loaded_tokenizer)}"
        )

    def make(implementation: str) -> PreTrainedModel:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(model_type, **values), attn_implementation=implementation, dtype=DTYPES[dtype]
        )

    with torch.random.fork_rng(devices=[]), usable_device(device):
        model, attn_implementation = supported(make, attn_implementation)
    model = with_attention(model, attn_implementation)
    return as_parent(model, loaded_tokenizer, f"random {model_type}", None, check)


def load_run(run: str | int, runs_dir: str, **kwargs: Unpack[Loading]) -> Parent:
    """The model of a finished run of this project as a parent, such as one of pretrain=embedded. Raises `ValueError` if
    the run has no model or one of its files has changed."""
    finished_run = Run.load(str(run), runs_dir)
    parent = load_parent(str(finished_run.trained_model().absolute()), **kwargs)
    parent.source = f"run {finished_run.id}"
    return parent


def load_gguf_package(package: str, **kwargs: Unpack[Loading]) -> Parent:
    """A parent whose GGUF file is distributed in Python wheels: `package.assemble()` joins the parts and returns the
    file. Raises `ValueError` if the package is not installed or the parts cannot be joined."""
    try:
        import_module("gguf")
        file = Path(import_module(package).assemble())
    except ImportError as error:
        raise ValueError(
            f"the parent in package {package!r} is not installed: pip install -e '.[gemma]' ({one_line(error)})"
        ) from error
    except (OSError, ValueError) as error:  # the disk is full, or a killed process left an incomplete file
        raise ValueError(
            f"the parts of package {package!r} could not be joined ({one_line(error)}): delete the file that this "
            "names, or free space, and try again"
        ) from error
    return load_parent(str(file.parent), gguf_file=file.name, **kwargs)


def as_parent(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    mask_token: str | None,
    check: bool,
    processor: ProcessorMixin | None = None,
) -> Parent:
    """Check that the model can be converted, and give it a mask token. Raises `ValueError` if it cannot."""
    require_eos(tokenizer, source)
    model.config.use_cache = False
    apply_one_axis(model)
    types = layer_types(model)
    if check:
        check_convertible(model, types)
    spans = check_images(model, types, example_document(processor)) if processor is not None else ()
    fit_vocabulary(model, tokenizer, source)
    mask_id = add_mask_token(model, tokenizer, mask_token)
    return Parent(model, tokenizer, mask_id, types, source, processor, spans)


def resolve(path: str) -> str:
    """The folder on disk of `pkg://package/folder` or of a path; a hub id is returned unchanged. Raises `ValueError` if
    there is no such folder."""
    if path.startswith(PACKAGE_PREFIX):
        package, _, folder = path.removeprefix(PACKAGE_PREFIX).partition("/")
        try:
            path = str(resources.files(package).joinpath(folder))
        except ImportError as error:
            raise ValueError(f"model.path {path!r}: there is no installed package {package!r}") from error
    elif not path.startswith((".", "/", "~")):
        return path
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"model.path {str(folder)!r} does not exist: give a hub id or an existing folder")
    return str(folder)
