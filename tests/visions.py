"""Tiny random vision-language models of several families, and documents as their processors would make them: by hand,
so that no tokenizer is needed."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from common import MASK_ID, ROOT, VOCAB
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, LlavaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from dlm.attention import block_sparse
from dlm.model.context import Context
from dlm.model.denoiser import Denoiser
from dlm.model.image_probe import span_ids
from dlm.model.layers import layer_types
from dlm.types import Batch, Images, generator

ASSETS = ROOT / "dlm" / "assets"
reads_pictures = pytest.mark.skipif(
    getattr(AutoImageProcessor, "is_dummy", False),
    reason="this transformers loads no processor of images without torchvision",
)
IMAGE, BEGIN, END = 50, 51, 52  # the ids of image tokens and of what stands around them; text has lower ones
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
THREE_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP |= {"image_size": 16, "patch_size": 4}
PATCHES = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4}
PATCHES |= {"spatial_merge_size": 2, "temporal_patch_size": 1, "out_hidden_size": 32, "in_channels": 3}
MARKS = {"image_token_id": IMAGE, "video_token_id": 53, "vision_start_token_id": BEGIN, "vision_end_token_id": END}
LLAMA = {"model_type": "llama", **TEXT}
QWEN = TEXT | {"rope_parameters": THREE_AXES}

CONFIGS = {
    "qwen2_5_vl": {
        "text_config": QWEN,
        "vision_config": PATCHES | {"window_size": 16, "fullatt_block_indexes": [1]},
        **MARKS,
    },
    "qwen3_vl": {
        "text_config": QWEN | {"head_dim": 16, "rope_parameters": THREE_AXES | {"mrope_interleaved": True}},
        "vision_config": PATCHES | {"depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        **MARKS,
    },
    "llava": {
        "text_config": LLAMA,
        "vision_config": CLIP | {"model_type": "clip_vision_model"},
        "image_token_id": IMAGE,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "idefics3": {
        "text_config": LLAMA,
        "vision_config": CLIP | {"size": {"longest_edge": 16}},
        "image_token_id": IMAGE,
        "scale_factor": 2,
    },
    "gemma3": {
        "text_config": TEXT
        | {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "vision_config": CLIP,
        "mm_tokens_per_image": 4,
        "image_token_id": IMAGE,
        "boi_token_id": BEGIN,
        "eoi_token_id": END,
    },
}
CONFIGS["smolvlm"] = CONFIGS["idefics3"]
CONFIGS["internvl"] = {
    "text_config": TEXT | {"model_type": "qwen2"},
    "vision_config": CLIP | {"image_size": [16, 16], "patch_size": [4, 4]},
    "image_token_id": IMAGE,
}
CONFIGS["glm4v"] = {
    "text_config": QWEN | {"rope_parameters": THREE_AXES | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}},
    "vision_config": PATCHES | {"image_size": 16},
    **{name.replace("vision", "image"): token for name, token in MARKS.items()},
    "video_start_token_id": 54,
    "video_end_token_id": 55,
}
FAMILIES = list(CONFIGS)
PATCHED = ("qwen2_5_vl", "qwen3_vl", "glm4v")  # images are rows of patches, whose number may differ
TOKENS = dict.fromkeys(FAMILIES, 4) | {"llava": 16} | dict.fromkeys(PATCHED, 6)


@cache
def vision(family: str, implementation: str = "sdpa", dtype: torch.dtype = torch.float64):
    """A tiny random model of a family, in evaluation mode, whose logits are far from tied."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **CONFIGS[family]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_scale = "norm" in name and name.endswith("weight") and weight.ndim == 1 and family != "gemma3"
            weight.copy_(torch.randn_like(weight) * (0.25 if weight.ndim > 1 else 0.1) + is_scale)
    model.config.use_cache = False
    return block_sparse.set_implementation(model.eval().to(dtype), implementation)


def images(family: str, ids: torch.Tensor, count: int, seed: int) -> Images | None:
    """`count` random images of a document, as the processor of a family would give them; None for a text."""
    if not count:
        return None
    noise, kinds = generator(seed), (ids == IMAGE).long()[None]
    pixels = torch.randn(count, 3, 16, 16, generator=noise)
    if family in PATCHED:  # 4 x 6 patches, of which 2 x 2 are one token
        patches = torch.randn(count * 24, 3 * 16, generator=noise)
        grid = torch.tensor([[1, 4, 6]]).repeat(count, 1)
        return Images({"pixel_values": patches, "image_grid_thw": grid}, {"mm_token_type_ids": kinds}, len(ids))
    if family in ("idefics3", "smolvlm"):
        return Images({"pixel_values": pixels[None]}, num_tokens=len(ids))
    return Images({"pixel_values": pixels}, {"token_type_ids": kinds} if family == "gemma3" else {}, len(ids))


def document(family: str, seed: int, before: int, after: int, answer: int, count: int = 1):
    """A document [text ; `count` images with `before` tokens of text before each ; text ; answer]: its ids, the length
    of its prompt, and its images."""
    noise = generator(seed)

    def text(length: int):
        return torch.randint(5, 45, (length,), generator=noise)

    image = [torch.tensor([BEGIN]), torch.full((TOKENS[family],), IMAGE), torch.tensor([END])]
    pictured = [part for _ in range(count) for part in (text(before), *image)] or [text(before)]
    prompt = torch.cat([*pictured, text(after)])
    return torch.cat([prompt, text(answer)]), len(prompt), images(family, prompt, count, seed)


def arguments(ids: torch.Tensor, pictures: Images) -> dict:
    """What the model's own forward takes for a document."""
    more = {n: torch.cat([v, v.new_zeros(1, len(ids) - v.shape[1])], 1) for n, v in pictures.of_tokens.items()}
    return {"input_ids": ids[None], **pictures.of_images, **more}


def packed(rows: list[list[tuple]]) -> Batch:
    """Rows of documents, all rows of one length."""
    columns = [[], [], [], []]
    for documents in rows:
        parts = [
            (ids, torch.arange(len(ids)) >= prompt, torch.full_like(ids, n), torch.arange(len(ids)))
            for n, (ids, prompt, _) in enumerate(documents)
        ]
        for column, values in zip(columns, zip(*parts, strict=True), strict=True):
            column.append(torch.cat(values))
    pictures = tuple({n: d[2] for n, d in enumerate(documents) if d[2] is not None} for documents in rows)
    return Batch(*map(torch.stack, columns), images=pictures if any(pictures) else None)


def seeing(family: str, pattern, token_shift: bool, **options) -> Denoiser:
    """A denoiser of a family."""
    model = vision(family, **options)
    ids, _, pictures = document(family, 9, 2, 2, 0)
    spans = span_ids(model, arguments(ids, pictures))
    return Denoiser(model, pattern, MASK_ID, token_shift, layer_types(model), spans)


def blind(context: Context) -> Context:
    """A context without its images."""
    return replace(context, given=torch.zeros_like(context.given), of_given={}, of_tokens={})


def save_llava(folder, chat_template: str | None = None) -> None:
    """A LLaVA-class checkpoint with its processor: random weights around the shape and the tokenizer of the shipped
    parent, and images of 16 x 16 pixels that are 16 tokens each."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    text = AutoConfig.from_pretrained(ASSETS / "tiny").to_dict() | {"vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(
        "llava",
        text_config=text,
        vision_config=CLIP | {"model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    picture = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    options = {"patch_size": 4, "vision_feature_select_strategy": "full", "chat_template": chat_template}
    LlavaProcessor(picture, tokenizer, **options).save_pretrained(folder)


def prompts(family: str, specifications: list[tuple[int, int, int]], seed: int = 20) -> tuple[list, list]:
    """Prompts and their images, given text `before` and `after` and the number of images; none: a prompt of text."""
    made = [document(family, seed + n, b, a, 0, count) for n, (b, a, count) in enumerate(specifications)]
    return [ids.tolist() for ids, *_ in made], [pictures for *_, pictures in made]
