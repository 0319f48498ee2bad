"""Publishes an exported folder on the Hugging Face hub, or says what would be published."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, save_torch_state_dict
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file

from dlm.errors import one_line
from dlm.exported.model_card import is_hub_name
from dlm.markdown import table
from dlm.model.parent import PACKAGE_PREFIX

SHARD_BYTES = 5 * 10**9  # of a safetensors file; larger ones are split
LICENSE = re.compile(r"^license: *(\S+)", re.MULTILINE)
OWN = "apache-2.0"  # of the embedded parents, as of this repository


def require_publishable(repo: str, license: str | None) -> None:
    """Raises `ValueError` for a name that the hub would not take, or if the parent's licence is not known."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"hub {repo!r} is no name on the hub ({one_line(error)}): give hub=USER/NAME") from error
    if not is_hub_name(repo):
        raise ValueError(f"hub {repo!r} has no owner: give hub=USER/NAME")
    if license is None:
        raise ValueError(
            "the parent's model card names no licence, under whose terms the converted weights are: look it up, and "
            "give it as in license=apache-2.0"
        )


def parent_license(source: str, api: HfApi | None) -> str | None:
    """The licence of a parent, by its name: what the head of its model card says, on the disk or, with an `api`, on the
    hub. None if that is not to be had."""
    if source.startswith(PACKAGE_PREFIX):
        return OWN
    card = Path(source).expanduser() / "README.md"
    if card.is_file():
        head = card.read_text(encoding="utf-8").split("\n---", 1)[0]
        return found[1] if (found := LICENSE.search(head)) else None
    if api is None or not is_hub_name(source):
        return None
    try:
        data = api.model_info(source).card_data
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return None
    return data.license if data else None


def split_weights(folder: Path, max_bytes: int = SHARD_BYTES) -> None:
    """Split the weights of a folder into files of at most `max_bytes`, if its only file of weights is larger."""
    whole = folder / "model.safetensors"
    if whole.exists() and whole.stat().st_size > max_bytes:
        tensors = {name: tensor.clone() for name, tensor in load_file(whole).items()}  # the file is mapped
        whole.unlink()
        save_torch_state_dict(tensors, folder, max_shard_size=max_bytes)


def contents(folder: Path) -> str:
    """A table of the files of a folder and their sizes."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    rows = [[str(file.relative_to(folder)), f"{file.stat().st_size:,}"] for file in files]
    return table(["file", "bytes"], rows)


def publish(folder: Path, repo: str, private: bool, api: HfApi) -> str:
    """Upload a folder to the repository `USER/NAME`, which is made if there is none, as one commit, and return its URL.
    Raises `ValueError` if the hub refuses it or is not to be reached."""
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        message = f"{folder.name}, converted with dlm"
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise ValueError(
            f"hub {repo!r} was not published ({one_line(error)}): the folder {str(folder)!r} is complete; log in with "
            "hf auth login, or set HF_TOKEN, and upload it with hf upload"
        ) from error
    return str(commit.commit_url)
