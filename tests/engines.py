"""A tiny engine over bytes, and documents to ask it about; every letter is a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from focus_core import FocusConfig, FocusEngine
from focus_core.engine.shared import SharedModel
from focus_core.loading.models import LoadedModel
from tests.model_zoo import random_projections
from tests.tiny import byte_tokenizer

A, B, C = ("alpha " * 30, "The second document. " * 9, "third: 3\n" * 5)
QUESTION = "Which?"


KEY = "0123456789abcdef" * 4  # of the tiny model, as if it had been loaded from files


def make_engine(
    *,
    seed: int = 0,
    store_bytes: int | None = None,
    host_bytes: int | None = None,
    store: Path | None = None,
    store_limit: int | None = None,
    key: str = KEY,
    method: str = "auto",
    trained: bool = True,
    device: str = "cpu",
    **config: Any,
) -> FocusEngine:
    """A random Llama over bytes, window 512, chunks of 64; its projections are not copies."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings = LlamaConfig(
        vocab_size=259, num_hidden_layers=3, max_position_embeddings=512, initializer_range=0.3, **sizes
    )
    settings.bos_token_id, settings.eos_token_id = 1, 2
    model = LlamaForCausalLM(settings).to(device)
    chosen = {"layout": "raw", "chunk_size": 64, "dynamic_prompt": 32, "local_window": 128, "plain_up_to": 0, **config}
    shared = SharedModel.of(LoadedModel(model, type(model).__name__), byte_tokenizer(), key=key if store else None)
    engine = FocusEngine(
        shared,
        config=FocusConfig(**chosen),
        store_bytes=store_bytes,
        host_bytes=host_bytes,
        store=store,
        store_limit=store_limit,
        method=method,
    )
    engine.focus.projections.load_state_dict(random_projections(model).state_dict())
    engine.focus.trained = trained
    return engine


def cold(question: str, documents: list[str], **options: object) -> str:
    """The answer of an engine that has read nothing yet."""
    return make_engine().generate(question, documents, max_new_tokens=8, **options).text  # type: ignore[arg-type]
