"""Both frameworks take a GGUF file as they take a model folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from focus_integrations import langchain, llama_index
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
