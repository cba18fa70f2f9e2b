"""Both frameworks take a GGUF file as they take a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from focus_core.errors import UnsupportedModelError
from focus_integrations import langchain, llama_index
from focus_integrations.engines import MODEL_VARIABLE
from tests.loading.conftest import HUB_ID, hub_cache
from tests.loading.gguf_files import write_gguf
from tests.test_docs import ROOT, blocks
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
@pytest.mark.parametrize(("page", "asks"), [("langchain", "llm.invoke("), ("llama_index", "llm.complete(")])
def test_the_first_example_of_a_page_runs_on_a_file(
    page: str,
    asks: str,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From a reader's own model, named once, to an answer about documents beyond its window."""
    path = write_gguf(tmp_path / "tiny.gguf", AutoModelForCausalLM.from_pretrained(model_folder), byte_tokenizer())
    monkeypatch.setenv(MODEL_VARIABLE, str(path))
    python = [block for _, block in blocks((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), "python")]
    first = next(number for number, block in enumerate(python) if asks in block)
    names: dict[str, Any] = {}
    for block in python[: first + 1]:
        exec(compile(block, page, "exec"), names)
    assert capsys.readouterr().out.strip()
    assert names["llm"].engine.shared.loaded.model_id == str(path)


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
