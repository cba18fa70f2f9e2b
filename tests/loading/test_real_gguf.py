"""Two real models from GGUF files: tokens, chat template and answers are those that their files mean."""

from __future__ import annotations

from functools import cache

import pytest

from focus_core import FocusEngine
from tests.models import needs_model, real_model

# Files of this size take some seconds to dequantise; each is loaded once.


@cache
def engine_of(name: str) -> FocusEngine:
    return FocusEngine.from_pretrained(real_model(name), device="cpu", progress=False)


@needs_model("smollm2")
@pytest.mark.slow
def test_smollm2_answers() -> None:
    """Its tokenizer sets digits apart before it splits text, which is not what transformers makes of the file."""
    engine = engine_of("smollm2")
    tokenizer = engine.tokenizer
    assert engine.config.window == 8192
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert engine.shared.loaded.model.generation_config.eos_token_id == [2]
    ids = tokenizer("a  12", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "ĠĠ", "1", "2"]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    answer = engine.generate("What is the capital of France?", max_new_tokens=12)
    assert answer.text == "The capital of France is Paris."
    assert answer.finish_reason == "stop"


@needs_model("gemma3")
@pytest.mark.slow
def test_gemma_continues() -> None:
    """A base model without a chat template, whose file holds no merges: they follow from the order of its tokens."""
    engine = engine_of("gemma3")
    tokenizer = engine.tokenizer
    assert tokenizer.chat_template is None
    assert engine.config.window == 512  # its sliding window
    ids = tokenizer("The capital of  France\n\n1")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "The", "▁capital", "▁of", "▁▁", "France", "\n\n", "1"]
    assert "Paris" in engine.generate("The Eiffel Tower stands in the city of", max_new_tokens=4).text
