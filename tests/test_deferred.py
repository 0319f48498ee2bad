"""A parent whose layers are loaded where they are sharded is the plain one, and no process holds all of them."""

import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist
from common import ARCHITECTURES, ROOT, SHAPE, config
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dlm.config.build import build
from dlm.evaluation.drift import measure, save_reference
from dlm.model.deferred import Deferred
from dlm.model.parent import load_parent
from dlm.model.sharding import shard, sharded_layers, whole
from dlm.model.skeleton import load_for_shards

TINY = ROOT / "dlm" / "assets" / "tiny"


def saved(folder, architecture: str, spoil=lambda model: None) -> str:
    """A folder with a random model, its weights in several files, and the embedded parent's tokenizer."""
    torch.manual_seed(0)
    shape = SHAPE | ARCHITECTURES[architecture] | {"vocab_size": 1024}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **shape))
    spoil(model)
    model.save_pretrained(folder, max_shard_size="20KB")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["llama", "gemma3_text", "qwen2", "mistral"])
def folder(request, tmp_path):
    return saved(tmp_path / "parent", request.param)


def test_the_deferred_parent_is_the_plain_one_but_for_the_place_of_its_layers(folder, tmp_path):
    plain, deferred = load_parent(folder), load_for_shards(folder)
    assert deferred.fingerprint() == plain.fingerprint() and deferred.deferred
    assert (deferred.mask_id, deferred.layer_types) == (plain.mask_id, plain.layer_types)
    assert deferred.model.config.to_dict() == plain.model.config.to_dict()
    layers = {id(p) for layer in sharded_layers(deferred.model) for p in layer.parameters()}
    assert all(p.is_meta == (id(p) in layers) for p in deferred.model.parameters())
    found, expected = (dict(parent.model.named_parameters()) for parent in (deferred, plain))
    assert found.keys() == expected.keys()  # tied weights are one
    assert all(torch.equal(deferred.weight(name, p), expected[name]) for name, p in found.items())
    for (_, a), (_, b) in zip(deferred.model.named_buffers(), plain.model.named_buffers(), strict=True):
        assert torch.equal(a, b)
    save_reference(deferred.model, tmp_path / "reference.safetensors", deferred.deferred)
    assert (measure(plain.model, tmp_path / "reference.safetensors")["relative"] == 0).all()


def test_what_cannot_be_read_by_name_is_loaded_whole(tmp_path):
    folder = saved(tmp_path / "parent", "llama")
    model = load_parent(folder).model
    model.get_decoder().save_pretrained(folder)  # without the prefix of a causal LM, and without its head
    with pytest.raises(ValueError, match="lacks 1 weights"):
        load_for_shards(folder)
    model.config.tie_word_embeddings = True
    model.get_decoder().save_pretrained(folder)
    parent = load_for_shards(folder)
    assert parent.deferred is None and not any(p.is_meta for p in parent.model.parameters())


@pytest.mark.trains
def test_layers_are_not_deferred_where_their_weights_are_read_before_they_are_sharded(monkeypatch):
    class Loaded(Exception):
        pass

    def loaded(model, *_):
        raise Loaded(any(p.is_meta for p in model.parameters()))

    monkeypatch.setattr("dlm.config.build.require_positions", loaded)  # is asked of the parent as it was loaded
    others = ("trainable=lora", "auxiliary=distill")
    for options, for_shards, deferred in [((), True, True), ((), False, False), *(((o,), True, False) for o in others)]:
        with pytest.raises(Loaded) as found:
            build(config("data.length=64", *options), for_shards=for_shards)
        assert found.value.args == (deferred,), options


def member(rank: int, port: int, folder: str, out: str) -> None:
    """One of two processes: what it read and holds, and the whole weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    read, of_file = [], Deferred.read
    Deferred.read = lambda self, name, rows=slice(None): read.append(of_file(self, name, rows)) or read[-1]
    parent = load_for_shards(folder)
    shard(parent.model, init_device_mesh("cpu", (2,)))
    parent.deferred.fill(parent.model)
    held = sum(p.to_local().nbytes for layer in sharded_layers(parent.model) for p in layer.parameters())
    weights = {name: whole(p.detach()).clone() for name, p in parent.model.named_parameters()}
    logits = parent.model(torch.arange(5, 25)[None]).logits.detach()
    torch.save((sum(tensor.nbytes for tensor in read), held, weights, logits), f"{out}{rank}")
    dist.destroy_process_group()


@pytest.mark.trains
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_two_processes_read_and_hold_half_of_the_layers_each_and_have_the_plain_weights(architecture, tmp_path):
    folder = saved(tmp_path / "parent", architecture)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=member, args=(rank, port, folder, f"{tmp_path}/rank")) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(100)
    found = [torch.load(tmp_path / f"rank{rank}") for rank in (0, 1)]
    plain = load_parent(folder)
    expected = dict(plain.model.named_parameters())
    of_layers = sum(p.nbytes for layer in sharded_layers(plain.model) for p in layer.parameters())
    assert sum(held for _, held, *_ in found) == of_layers
    for read, held, weights, logits in found:
        assert read == held and abs(held / of_layers - 0.5) < 0.02
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
        torch.testing.assert_close(logits, plain.model(torch.arange(5, 25)[None]).logits.detach())


def test_a_weight_outside_the_layers_that_is_not_finite_is_refused_as_in_any_parent(tmp_path):
    def spoil(model):
        model.model.norm.weight.data[3] = float("inf")

    with pytest.raises(ValueError, match=r"1 of 32 values of its tensor model.norm.weight are not finite"):
        load_for_shards(saved(tmp_path, "llama", spoil))


@pytest.mark.trains
def test_a_weight_that_is_not_finite_is_named_when_it_is_read(tmp_path):
    def spoil(model):
        model.model.layers[2].mlp.up_proj.weight.data[3, 4] = float("nan")

    parent = load_for_shards(saved(tmp_path, "llama", spoil))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        shard(parent.model, init_device_mesh("cpu", (1,)))
        with pytest.raises(
            ValueError, match=r"1 values of its tensor model.layers.2.mlp.up_proj.weight are not finite"
        ):
            parent.deferred.fill(parent.model)
    finally:
        dist.destroy_process_group()
