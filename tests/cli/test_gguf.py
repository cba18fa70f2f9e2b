"""`--gguf-file` says which file of a hub id or folder every command loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.cli.conftest import Focusllm
from tests.loading.conftest import HUB_ID, hub_cache
from tests.loading.gguf_files import write_gguf
from tests.tiny import byte_tokenizer

COMMANDS: dict[str, tuple[str, ...]] = {
    "ask": ("Which?", "--max-new-tokens", "4"),
    "info": (),
    "plan": ("-d", "book.txt"),
    "prepare": ("-d", "book.txt", "--store", "kept"),
    "eval": ("--task", "passkey", "--tokens", "300", "--questions", "1", "--max-new-tokens", "4"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_a_file_of_a_hub_id(
    focusllm: Focusllm, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", AutoModelForCausalLM.from_pretrained(model_folder), byte_tokenizer())
    shutil.copy(path, tmp_path / "other.gguf")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache(tmp_path, tmp_path / "cache")))
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("The pass key is 71402. ")
    for model in (HUB_ID, str(tmp_path)):
        loaded = (command, "--model", model, "--device", "cpu", *COMMANDS[command])
        result = focusllm(*loaded, "--gguf-file", "tiny.gguf")
        assert result.exit_code == 0, result.output
        result = focusllm(*loaded, "--gguf-file", "third.gguf")
        assert result.exit_code == 1
        assert "third.gguf" in result.stderr
