"""A base model, and an adapter that belongs to it."""

from __future__ import annotations

import shutil
from hashlib import sha1, sha256
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


@pytest.fixture
def base(model_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.fixture
def adapter(model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(model_folder / "adapter", tmp_path / "adapter"))


HUB_ID = "somebody/tiny"
COMMIT = "0123456789" * 4


def hub_cache(folder: Path, cache: Path) -> Path:
    """A cache of the hub that holds the files of `folder` as `somebody/tiny`: blobs, and links to them."""
    repository = cache / "models--somebody--tiny"
    snapshot, blobs, refs = (repository / name for name in (f"snapshots/{COMMIT}", "blobs", "refs"))
    for made in (snapshot, blobs, refs):
        made.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    for path in filter(Path.is_file, folder.iterdir()):
        content = path.read_bytes()
        large = path.suffix == ".safetensors"
        blob = blobs / (sha256(content).hexdigest() if large else sha1(content).hexdigest())
        blob.write_bytes(content)
        (snapshot / path.name).symlink_to(blob)
    return cache
