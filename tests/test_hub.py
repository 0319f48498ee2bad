"""Publishing: what would be uploaded is said, and what is uploaded reaches the hub's API whole; the hub is a stub on
loopback that speaks its protocol."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from test_formats import a_run

from dlm.export import main
from dlm.exported import hub
from dlm.exported.hub import parent_license, publish, require_publishable, split_weights

TOKEN = "hf_" + "a" * 34


class Hub(BaseHTTPRequestHandler):
    """The calls of the hub's API that an upload makes. Large files come by a second way, as on the hub."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        seen, path = self.server.seen, self.path.split("?")[0]
        seen["tokens"].add(self.headers["Authorization"])
        if self.server.refuses:
            return self.answer({"error": "You do not have the rights"}, 403)
        if path == "/api/repos/create":
            seen["created"] = json.loads(body)
            self.answer({"url": f"{self.server.url}/me/my_dlm", "id": "me/my_dlm"})
        elif path == "/api/validate-yaml":
            seen["card"] = json.loads(body)["content"]
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if file.endswith(".safetensors") else "regular" for file in files]
            answers = [
                {"path": file, "uploadMode": mode, "shouldIgnore": False}
                for file, mode in zip(files, modes, strict=True)
            ]
            self.answer({"files": answers})
        elif path.endswith("/info/lfs/objects/batch"):
            found = json.loads(body)["objects"]
            upload = [o | {"actions": {"upload": {"href": f"{self.server.url}/put/{o['oid']}"}}} for o in found]
            self.answer({"transfer": "basic", "objects": upload})
        elif "/commit/" in path:
            for line in filter(None, body.decode().split("\n")):
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "header":
                    seen["message"] = value["summary"]
                elif entry["key"] == "file":
                    seen["files"][value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    seen["files"][value["path"]] = seen["put"][value["oid"]]
            oid = "f" * 40
            self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/me/my_dlm/commit/{oid}"})
        else:
            self.answer({"error": path}, 404)

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen["put"][self.path.rpartition("/")[2]] = body
        self.answer({})

    def do_GET(self):
        known = self.path.startswith("/api/models/acme/parent")
        found = {"id": "acme/parent", "cardData": {"license": "llama3"}, "siblings": [], "tags": []}
        self.answer(found if known else {"error": "Repository not found"}, 200 if known else 404)

    def answer(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.refuses = f"http://127.0.0.1:{server.server_port}", False
    server.seen = {"files": {}, "put": {}, "tokens": set()}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    server.api = HfApi(endpoint=server.url, token=TOKEN)
    monkeypatch.setattr("dlm.export.HfApi", lambda: server.api)
    huggingface_hub.close_session()
    yield server
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


DRIFT = {"ffn/relative": 0.25, "ffn/mean_abs": 0.015, "ffn/one_minus_cos": 0.029}
SETTING = {"name": "1 token/step", "accuracy": 0.654, "low": 0.6, "high": 0.7, "n": 360, "tpf": 1.94, "nfe": 3.5}
LIKELIHOOD = {"nats": 2.5, "standard_error": 0.03, "bits_per_byte": 1.27}
SCORES = {"metrics": {"exact_match,none": 0.5, "exact_match_stderr,none": 0.05}, "n": 100}


@pytest.mark.trains
def test_the_command_publishes_what_it_has_written_only_when_told_to(tmp_path, call, server):
    run = a_run(tmp_path / "runs" / "abc", "nemotron")
    measured = {"generation": [SETTING | {"threshold": None}], "likelihood": LIKELIHOOD}
    run.update(
        evaluation={"parent": measured, "dlm": measured},
        drift=DRIFT,
        choices={"recipe": "nemotron_labs_diffusion"},
        budget={"answer_tokens": 496_492},
        benchmarks={"dlm": {"gsm8k": SCORES}},
        parent={"source": "acme/parent"},
    )
    command = (main, f"runs_dir={tmp_path}/runs", "run=abc", "format=nemotron", "hub=me/my_dlm")
    code, out, _ = call(*command, f"to={tmp_path}/dry")
    assert code == 0 and not server.seen["files"] and "created" not in server.seen
    assert "nothing was uploaded: upload=true publishes these files as me/my_dlm" in out
    assert "| model.safetensors" in out
    code, out, _ = call(*command, f"to={tmp_path}/my_dlm", "upload=true")
    assert code == 0 and f"{server.url}/me/my_dlm/commit/" in out
    folder, seen = tmp_path / "my_dlm", server.seen
    assert seen["files"] == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert seen["created"]["name"] == "my_dlm" and seen["created"]["visibility"] == "private"
    assert seen["message"] == "my_dlm, converted with dlm" and seen["tokens"] == {f"Bearer {TOKEN}"}
    head, card = (folder / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    values = yaml.safe_load(head)
    assert (values["license"], values["base_model"]) == ("llama3", "acme/parent")
    for said in (
        "vllm serve me/my_dlm",
        "| recipe | nemotron_labs_diffusion |",
        "| decoding: threshold | 0.9 |",
        "| trained on: answer tokens | 496,492 |",
        "| dLM, 1 token/step | 65.4% | 60.0% – 70.0% | 360 |",
        "The dLM's (a bound) negative log-likelihood of held-out prose: 2.500 ± 0.030 nats per token",
        "| gsm8k | exact_match | dlm | 50.0% ± 9.8% | 100 |",
        "| ffn | 0.25 | 0.015 | 0.029 |",
        "llama3, the licence of the parent, `acme/parent`",
        "the recipe is that of arXiv 2607.05722",
    ):
        assert said in card


def test_what_cannot_be_published_is_refused_before_anything_is_written(tmp_path, call, server):
    for repo, license, message in (
        ("my dlm", "mit", "is no name on the hub"),
        ("my_dlm", "mit", "has no owner: give hub=USER/NAME"),
        ("me/my_dlm", None, "the parent's model card names no licence"),
    ):
        with pytest.raises(ValueError, match=message):
            require_publishable(repo, license)
    require_publishable("me/my_dlm", "mit")


def test_a_hub_that_refuses_is_an_error_in_one_line_that_says_where_the_folder_is(tmp_path, server):
    (tmp_path / "README.md").write_text("x")
    server.refuses = True
    with pytest.raises(ValueError, match=r"hub 'me/my_dlm' was not published \(.*\): the folder .* is complete"):
        publish(tmp_path, "me/my_dlm", True, server.api)


def test_the_licence_of_a_parent_is_what_its_card_says(tmp_path, server):
    (tmp_path / "README.md").write_text("---\nlibrary_name: x\nlicense: mit\n---\nlicense: none\n")
    assert parent_license(str(tmp_path), server.api) == "mit"
    (tmp_path / "README.md").write_text("---\nlibrary_name: x\n---\nlicense: none\n")
    assert parent_license(str(tmp_path), server.api) is None
    assert parent_license("pkg://dlm/assets/tiny", server.api) == hub.OWN
    assert parent_license("acme/parent", server.api) == "llama3"
    assert parent_license("acme/parent", None) is None
    assert parent_license("acme/unknown", server.api) is None


def test_large_weights_are_split_and_stay_the_same(tmp_path):
    tensors = {f"layer.{n}": torch.randn(64, 8) for n in range(6)}
    save_file(tensors, tmp_path / "model.safetensors")
    split_weights(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    split_weights(tmp_path, max_bytes=5000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(shards) == 3 and set(index) == set(tensors)
    again = {name: tensor for file in shards for name, tensor in load_file(file).items()}
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())
