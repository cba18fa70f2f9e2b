"""What holds for every test: offline, seeded, two threads, nothing written beside the code."""

from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before anything else
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads leave the cores to others; before torch is imported
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.gettempdir() + "/hypothesis"  # not into the repository

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import set_seed
from transformers.utils import logging

from focus_core.loading.named import MODELS_VARIABLE, models_folder
from tests.tiny import save_tiny_model

os.environ[MODELS_VARIABLE] = str(models_folder())  # before `_own_cache` moves the cache that they lie in
# `make test` runs two processes, each with a thread; and each process that a test starts has as many.
_THREADS = os.environ.get("FOCUSLLM_TEST_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_NUM_THREADS", _THREADS)
torch.set_num_threads(int(_THREADS))
# No time limit for one example: on a busy machine any of them may be slow. In CI the same examples every time.
settings.register_profile("focusllm", deadline=None, database=None, max_examples=50, derandomize="CI" in os.environ)
settings.load_profile("focusllm")
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
