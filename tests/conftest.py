"""What holds for every test: offline, seeded, two threads."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before anything else
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from transformers import set_seed
from transformers.utils import logging

torch.set_num_threads(int(os.environ.get("FOCUSLLM_TEST_THREADS", "2")))
logging.set_verbosity_error()
logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    set_seed(0)
