"""Both frameworks take a GGUF file as they take a model folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from focus_core.errors import UnsupportedModelError
from focus_integrations import langchain, llama_index
from tests.loading.conftest import HUB_ID, hub_cache
from tests.loading.gguf_files import write_gguf
from tests.tiny import byte_tokenizer


@pytest.mark.filterwarnings("ignore:.*no adapter is loaded")
def test_both_frameworks_answer_from_a_file(model_folder: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", AutoModelForCausalLM.from_pretrained(model_folder), byte_tokenizer())
    answers = [
        langchain.FocusLLM(model=str(name), device="cpu", max_tokens=8).invoke("Which?")
        for name in (model_folder, path)
    ]
    answers.append(llama_index.FocusLLM(model=str(path), device="cpu", max_tokens=8).complete("Which?").text)
    assert len(set(answers)) == 1
    assert answers[0]


@pytest.mark.filterwarnings("ignore:.*no adapter is loaded")
def test_both_frameworks_take_a_file_of_a_hub_id(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another beside it, as quantisations lie on the hub."""
    base, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), byte_tokenizer()
    for name in ("tiny.gguf", "other.gguf"):
        write_gguf(tmp_path / name, base, tokenizer)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache(tmp_path, tmp_path / "cache")))
    named = {"model": HUB_ID, "gguf_file": "tiny.gguf", "device": "cpu", "max_tokens": 8}
    chain, index = langchain.FocusLLM(**named), llama_index.FocusLLM(**named)
    expected = langchain.FocusLLM(model=model_folder, device="cpu", max_tokens=8).invoke("Which?")
    assert chain.longest_input is not None  # known before it is loaded
    assert (chain.invoke("Which?"), index.complete("Which?").text) == (expected, expected)
    assert chain.engine is index.engine
    chain.gguf_file = "third.gguf"
    assert chain.longest_input is None
    with pytest.raises(UnsupportedModelError, match=r"The hub gave no third\.gguf of 'somebody/tiny'"):
        chain.invoke("Which?")
