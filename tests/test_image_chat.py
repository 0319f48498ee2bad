"""Conversations with pictures: their formats, their documents, what is left out, and the prepared corpus."""

import base64
import copy
import io
import json
import pickle
import random
import struct

import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from dlm.config.build import make
from dlm.data import scenes
from dlm.data.image_chat import NAMED, ImageChatEncoder
from dlm.data.origin import Batch
from dlm.data.packing import collate
from dlm.data.picture_files import parts_of, read_pictures
from dlm.data.pictures import processed, rendered, require_processor
from dlm.model.compose import compose, new_tower
from dlm.model.parent import load_parent, resolve

SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 48, "patch_size": 12}


@pytest.fixture(scope="module")
def processor():
    parent = load_parent("pkg://dlm/assets/tiny", check=False)
    return compose(parent.model, parent.tokenizer, new_tower(SIZE, 0.1, 0.3, 0))[1]


@pytest.fixture
def picture(tmp_path):
    """A file, and the folder that it is in."""
    Image.fromarray(scenes.sample("list", "val", random.Random(0)).image).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def encoded(processor, folder, *rows, turns="each", columns=None):
    encoder = ImageChatEncoder(processor, NAMED | (columns or {}), turns, folder)
    return encoder(Batch(0, "chat.jsonl", 1, list(rows)))


def formats(picture):
    """One conversation, as every format writes it."""
    raw, ask, said = picture.read_bytes(), "list:", "A red disc"
    uri = f"data:image/png;base64,{base64.b64encode(raw).decode()}"
    user = {"type": "text", "text": ask}
    answer = {"role": "assistant", "content": said}
    yield {"messages": [{"role": "user", "content": [{"type": "image", "path": "one.png"}, user]}, answer]}
    yield {"messages": [{"role": "user", "content": [{"type": "image"}, user]}, answer], "images": ["one.png"]}
    yield {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}, user]}, answer]}
    yield {"image": "one.png", "conversations": [{"from": "human", "value": f"<image>{ask}"}, turn("gpt", said)]}
    yield {"image": "one.png", "conversations": [{"from": "human", "value": ask}, turn("gpt", said)]}
    yield {"image": {"bytes": raw, "path": None}, "prompt": ask, "completion": said}
    yield {"images": [Image.open(io.BytesIO(raw))], "prompt": f"<image>{ask}", "completion": said}


def turn(who, text):
    return {"from": who, "value": text}


def test_every_format_of_a_conversation_gives_the_same_documents(processor, picture):
    expected = None
    for row in formats(picture):
        made = encoded(processor, picture.parent, row)
        ids = made.tokens.tolist()
        assert made.left_out == {} and made.lengths.tolist() == [len(ids)]
        assert processor.tokenizer.decode(ids[: made.answers[0]]) == "<image>" * 16 + "list:"
        assert processor.tokenizer.decode(ids[made.answers[0] :]) == "A red disc<eos>"
        assert expected in (None, ids)
        expected = ids


def test_an_answer_has_the_pictures_of_the_turns_before_it_and_their_files_are_kept_once(processor, picture):
    two = {"images": ["one.png", "one.png"], "conversations": [turn("human", "<image>a"), turn("gpt", "b")]}
    two["conversations"] += [turn("human", "<image>c"), turn("gpt", "d")]
    made = encoded(processor, picture.parent, two)
    assert made.beside["number"].tolist() == [1, 2] and made.beside["first"].tolist() == [0, 0]
    assert len(made.beside["picture_ends"]) == 2 and len(made.lengths) == 2
    assert encoded(processor, picture.parent, two, turns="last").beside["number"].tolist() == [2]


@pytest.mark.parametrize(
    ("image", "text", "reason"),
    [
        ("none.png", "<image>a", "with a missing picture"),
        ("broken.png", "<image>a", "with a damaged picture"),
        ("cut.png", "<image>a", "with a damaged picture"),
        ("https://a.b/c.png", "<image>a", "with the address of a picture, which is not downloaded"),
        ("one.png", "<image><image>a", "with more or fewer pictures than places for them"),
        ("one.png", "<image>a<eos>", "with a message that spells a special token"),
    ],
)
def test_what_cannot_be_used_is_left_out_counted_and_named(image, text, reason, processor, picture):
    (picture.parent / "broken.png").write_bytes(b"no picture")
    (picture.parent / "cut.png").write_bytes(picture.read_bytes()[:-200])
    bad = {"image": image, "conversations": [turn("human", text), turn("gpt", "b")]}
    good = {"image": "one.png", "conversations": [turn("human", "<image>a"), turn("gpt", "b")]}
    made = encoded(processor, picture.parent, bad, good, bad)
    assert made.left_out == {reason: 2} and len(made.lengths) == 1
    assert [name.partition(":")[0] for name in made.named] == ["row 1 of chat.jsonl", "row 3 of chat.jsonl"]


def test_a_row_without_a_conversation_is_refused_with_the_columns_that_it_has(processor, tmp_path):
    with pytest.raises(ValueError, match=r"row 1 of chat.jsonl holds no conversation .* the columns \['q'\]"):
        encoded(processor, tmp_path, {"q": "a"})
    with pytest.raises(ValueError, match="row 1 of chat.jsonl, turn 1 holds neither text nor an image"):
        encoded(processor, tmp_path, {"messages": [{"role": "user", "content": [{"type": "video"}]}]})


def test_what_a_template_cannot_render_is_refused_by_the_number_of_its_row(processor, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match=r"the chat template cannot render row 1 of .*: .*roles must alternate"):
        encoded(processor, tmp_path, {"conversations": [turn("human", "a"), turn("gpt", "b")]})


@pytest.fixture
def data(processor, tmp_path, monkeypatch):
    """Prepared data of 40 scenes, and of a row whose picture is missing."""
    monkeypatch.setenv("DLM_CACHE", str(tmp_path / "cache"))
    asked = [scenes.sample("at", "train", random.Random(n)) for n in range(40)]
    rows = [{"image": f"{n}.png", "prompt": s.prompt, "completion": s.answer} for n, s in enumerate(asked)]
    for n, scene in enumerate(asked):
        Image.fromarray(scene.image).save(tmp_path / f"{n}.png")
    rows.append({"image": "gone.png", "prompt": "at A:", "completion": "A none"})
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"length": 128, "batch_size": 2, "val_rows": 2, "path": str(tmp_path / "chat.jsonl")}
    made = make({"_target_": "dlm.data.image_chat.ImageChat", "group": 4} | options)
    made.processor = processor
    return made


def test_a_prepared_corpus_gives_documents_with_the_tensors_of_their_pictures(data, processor, capsys):
    data.prepare(processor.tokenizer, lambda length, given, rng: -length % 8, 4, 0)
    errors = capsys.readouterr().err
    assert "left out: 1 rows with a missing picture" in errors and "(gone.png)" in errors
    batch = collate([data.train_rows[n] for n in range(4)])
    assert sum(len(images) for images in batch.images) >= 4
    for row, images in enumerate(batch.images):
        for number, of in images.items():
            assert of.of_images["pixel_values"].shape == (1, 3, 48, 48)
            tokens = batch.x0[row][batch.document[row] == number]
            assert (tokens == processor.tokenizer.convert_tokens_to_ids("<image>")).sum() == 16
            assert not batch.maskable[row][batch.document[row] == number][:16].any()
    corpus = pickle.loads(pickle.dumps(data.corpora["image_chat"]))
    again, here = corpus.document(3), data.corpora["image_chat"].document(3)
    assert again.ids == here.ids
    assert torch.equal(again.images.of_images["pixel_values"], here.images.of_images["pixel_values"])
    assert processor.tokenizer.decode(here.ids).startswith("<image>" * 16 + "at ")


def test_passes_over_documents_keep_their_pictures(data, processor):
    data.order = "packed"
    data.prepare(processor.tokenizer, lambda length, given, rng: -length % 8, 4, 0)
    batch = collate([data.train_rows[n] for n in range(3)])
    assert [len(images) for images in batch.images] == [int(row.max()) + 1 for row in batch.document]


def test_it_is_prepared_once_and_tokens_of_another_processor_are_refused(data, processor, capsys):
    data.prepare(processor.tokenizer, lambda length, given, rng: 0, 4, 0)
    assert "prepared" in capsys.readouterr().out
    data.prepare(processor.tokenizer, lambda length, given, rng: 0, 4, 0)
    assert "prepared" not in capsys.readouterr().out
    corpus = data.corpora["image_chat"]
    corpus.tokens = corpus.tokens + 1
    with pytest.raises(ValueError, match="makes other tokens of document 0"):
        corpus.document(0)


def test_pictures_count_against_the_length(data, processor):
    data.length = 16
    with pytest.raises(ValueError, match=r"all .* documents of the train split have more than data.length 16 tokens"):
        data.prepare(processor.tokenizer, lambda length, given, rng: 0, 4, 0)


def test_a_parent_that_reads_text_and_a_processor_without_a_template_are_refused(data, processor):
    data.processor = None
    with pytest.raises(ValueError, match="data=image_chat has pictures, and the parent reads text only"):
        data.prepare(
            AutoTokenizer.from_pretrained(resolve("pkg://dlm/assets/tiny")), lambda length, given, rng: 0, 4, 0
        )
    processor.chat_template, kept = None, processor.chat_template
    try:
        with pytest.raises(ValueError, match="processor has no chat template"):
            require_processor(processor, "data=scenes")
    finally:
        processor.chat_template = kept


def test_rows_of_scenes_have_a_picture_in_each_document_and_its_question(processor):
    made = make({"_target_": "dlm.data.scenes.rows.Scenes", "length": 128, "batch_size": 2, "val_rows": 2})
    made.processor = processor
    made.prepare(processor.tokenizer, lambda length, given, rng: -length % 8, 4, 0)
    batch = collate([made.train_rows[0], made.train_rows[1]])
    assert [*batch.images[0]] == [*range(int(batch.document[0].max()) + 1)]
    text = processor.tokenizer.decode(batch.x0[0][batch.document[0] == 0])
    assert text.startswith("<image>" * 16) and ":" in text and text.endswith("<eos>")
    assert all(len(row.images) == 1 and row.images[0] for row in made.validation_rows)  # they are seen there, too
    assert made.asked == tuple(f"scenes.{name}" for name in ("list", "grid", "count", "at", "words"))
    with pytest.raises(ValueError, match=r"data.families \['draw'\] are unknown"):
        make(
            {
                "_target_": "dlm.data.scenes.rows.Scenes",
                "length": 8,
                "batch_size": 1,
                "val_rows": 1,
                "families": ["draw"],
            }
        )


def test_halved_fill_is_in_the_loss_at_half_its_weight(processor):
    options = {"_target_": "dlm.data.scenes.rows.Scenes", "length": 128, "batch_size": 2, "val_rows": 2}
    rows = {}
    for fill in ("unscored", "halved"):
        made = make(options | {"fill": fill})
        made.processor = processor
        made.prepare(processor.tokenizer, lambda length, given, rng: -length % 8, 4, 0)
        rows[fill] = made.train_rows[0]
    assert rows["halved"].fill is None and torch.equal(rows["halved"].halved, rows["unscored"].fill)
    assert rows["halved"].halved.any() and torch.equal(rows["halved"].targets, rows["halved"].maskable)


def test_an_image_without_an_address_is_a_place_for_the_rows_own_picture():
    """And no traceback: a row that has none is then left out and counted."""
    for part in ({"type": "image_url"}, {"type": "image_url", "image_url": {}}, {"type": "image"}):
        assert parts_of([part]) == [{"type": "image", "image": None}]


@pytest.mark.parametrize("template", ["", "{{ bos_token }}"])
def test_prompts_with_and_without_pictures_begin_with_one_bos_if_the_tokenizer_adds_it(template, processor, picture):
    processor = copy.deepcopy(processor)
    tokenizer = processor.tokenizer
    assert processed(processor, "list:", [])[0] == tokenizer("list:", add_special_tokens=False)["input_ids"]
    tokenizer.bos_token = tokenizer.eos_token
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    adds = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.backend_tokenizer.post_processor = adds
    processor.chat_template = template + processor.chat_template
    for pictures in ([], read_pictures([str(picture)])):
        content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": "list:"}]
        ids, _ = processed(processor, rendered(processor, [{"role": "user", "content": content}]), pictures)
        assert ids[0] == bos[1] and ids.count(bos[1]) == 1


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0", b"Exif\0\0MM\0*\0\0"], ids=["no header", "cut off"])
def test_a_whole_picture_with_a_damaged_exif_is_read_as_it_is(exif, tmp_path):
    Image.new("RGB", (6, 4), "red").save(tmp_path / "one.png", exif=exif)
    with pytest.raises((SyntaxError, struct.error)):
        Image.open(tmp_path / "one.png").getexif()
    (picture,) = read_pictures([str(tmp_path / "one.png")])
    assert (picture.size, picture.getcolors()) == ((6, 4), [(24, (255, 0, 0))])
