"""`focusllm info`: the numbers are those of the engine, and "it fits" is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from focus_core import FocusEngine
from focus_core.loading.adapters import ADAPTER_WEIGHTS
from tests.cli.conftest import Focusllm
from tests.tiny import CHUNK, WINDOW

ANY_LETTER = ["\ufffd", *map(chr, range(1, 256))]  # stop strings that end an answer of random bytes at once


@pytest.fixture
def info(focusllm: Focusllm, model_folder: Path) -> Focusllm:
    def run(*arguments: str | Path, stdin: bytes = b"") -> Any:
        return focusllm("info", "--model", model_folder, "--adapter", model_folder / "adapter", *arguments, stdin=stdin)

    return run


def nbytes(tensors: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(tensors).values())


def test_describes_the_model(info: Focusllm, model_folder: Path) -> None:
    result = info("--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "model": str(model_folder),
        "adapter": str(model_folder / "adapter"),
        "device": "cpu",
        "dtype": "float32",
        "kv_dtype": "float32",
        "layout": "raw",
        "window": WINDOW,
        "method_beyond_window": "focus",
        "chunk_size": CHUNK,
        "local_window": CHUNK,
        "dynamic_prompt": 32,
        "layers": 3,
        "kv_heads": 2,
        "weights_bytes": nbytes(model_folder / "model.safetensors"),
        "projections_bytes": nbytes(model_folder / "adapter" / ADAPTER_WEIGHTS),
        "cache_bytes_per_token": 2 * (3 - 1) * 2 * 8 * 4,
        "reading": None,
    }


def test_says_exactly_what_reading_takes(info: Focusllm, model_folder: Path, tmp_path: Path) -> None:
    """The number must be the one that the engine then uses."""
    texts = [" ".join(map(str, range(1000)))[:1000], "y" * 70]  # a chunk that comes twice is read once
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    reading = json.loads(info("-d", tmp_path, "--json").stdout)["reading"]
    engine = FocusEngine.from_pretrained(model_folder, adapter=model_folder / "adapter", progress=False)
    engine.shared.store.clear()  # other tests may have used the same model
    engine.prepare(texts)
    assert reading["cache_bytes"] == engine.shared.store.nbytes
    assert reading["documents"] == 2
    assert reading["tokens"] == 1070
    assert reading["chunks"] == 16 + 2
    assert reading["method"] == "focus"
    assert reading["fits"]


@pytest.mark.parametrize("tokens", [100, WINDOW - 40, WINDOW - 20, WINDOW + 1])
def test_reads_as_a_question_would_be(info: Focusllm, model_folder: Path, tokens: int) -> None:
    """A text that leaves the plain model no positions for an answer is read in chunks."""
    reading = json.loads(info("--tokens", str(tokens), "--json").stdout)["reading"]
    engine = FocusEngine.from_pretrained(model_folder, adapter=model_folder / "adapter", progress=False)
    answer = engine.generate("Key?", ["x" * tokens], stop=ANY_LETTER)  # no word on its length, which is what counts
    assert reading["chunks"] == answer.usage.chunks


def test_no_room_for_a_question_does_not_fit(info: Focusllm) -> None:
    result = info("--tokens", str(2 * (WINDOW - 10)), "--chunk-size", "2")
    assert "leaves 9 positions" in result.stdout  # a BOS takes the tenth
    assert "It does not fit the window" in result.stdout


def test_plain_words(info: Focusllm) -> None:
    result = info("--tokens", "6400")
    assert result.exit_code == 0, result.output
    assert "6,400 tokens: 100 chunks, method focus.\n" in result.stdout
    assert "and there is an adapter.\n" in result.stdout
    assert "It fits." in result.stdout


def test_too_much_for_the_window(info: Focusllm) -> None:
    result = info("--tokens", str(CHUNK * WINDOW))
    assert result.exit_code == 0
    assert "does not fit the window" in result.stdout
    assert "--chunk-size" in result.stdout


def test_too_much_for_the_memory(info: Focusllm) -> None:
    result = info("--tokens", str(10**15), "--json")
    reading = json.loads(result.stdout)["reading"]
    assert reading["cache_bytes"] > reading["free_bytes"]
    assert not reading["fits"]
    assert "does not fit the memory" in info("--tokens", str(10**15)).stdout


def test_a_text_that_fits_is_read_by_the_plain_model(focusllm: Focusllm, model_folder: Path) -> None:
    result = focusllm("info", "--model", model_folder, "--tokens", "100", "--json")
    reading = json.loads(result.stdout)["reading"]
    assert reading["chunks"] == 0
    assert reading["method"] == "plain"
    before, after = 1 + len("user: "), 2  # a BOS and the start of the user's turn; a separator
    assert reading["positions_left"] == WINDOW - before - 100 - after
    per_token = 2 * 3 * 2 * 8 * 4  # it keeps the last layer's keys and values, too
    assert reading["cache_bytes"] == 100 * per_token
    assert reading["prompt_bytes"] == (1 + 32 + after + 256) * per_token


def test_without_an_adapter_select_is_named_with_the_reason(focusllm: Focusllm, model_folder: Path) -> None:
    result = focusllm("info", "--model", model_folder, "--tokens", str(2 * WINDOW))
    assert result.exit_code == 0, result.output
    assert "method beyond window    select\n" in result.stdout
    assert "method select.\nMethod: a row of " in result.stdout
    assert f"is more than the plain model reads ({WINDOW:,}), and there is no adapter.\n" in result.stdout
    alone = json.loads(focusllm("info", "--model", model_folder, "--json").stdout)
    assert (alone["method_beyond_window"], alone["reading"]) == ("select", None)


def test_a_method_can_be_chosen(info: Focusllm) -> None:
    for method, chunks in (("auto", 2), ("focus", 2), ("plain", 0)):
        reading = json.loads(info("--tokens", "100", "--method", method, "--json").stdout)["reading"]
        assert (reading["method"], reading["chunks"]) == ("plain" if method == "plain" else "focus", chunks)
    assert "method plain" in info("--tokens", "100", "--method", "plain").stdout
    result = info("--method", "fokus")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "method='fokus': choose from" in result.stderr


@pytest.mark.parametrize("arguments", [("--tokens", "0"), ("--tokens", "5", "-d", "-"), ("a word",)])
def test_wrong_usage(info: Focusllm, arguments: tuple[str, ...]) -> None:
    assert info(*arguments).exit_code == 2
