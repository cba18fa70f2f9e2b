"""What holds for every test: offline, seeded, two threads."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before anything else
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import set_seed
from transformers.utils import logging

from tests.tiny import save_tiny_model

torch.set_num_threads(int(os.environ.get("FOCUSLLM_TEST_THREADS", "2")))
logging.set_verbosity_error()
logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    set_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hashes of model files are remembered here, not in the cache of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with an adapter in `adapter/`, saved to a folder."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
