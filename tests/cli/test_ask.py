"""`focusllm ask`: what is read, what is printed, and what an error looks like."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from focus_core import FocusConfig, FocusEngine
from focus_core.methods.focus_method import FocusMethod
from tests.cli.conftest import Focusllm
from tests.tiny import CHUNK, WINDOW

QUESTION = "What is the key?"
TEXT = "The key is 48213. " * 20


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    return path


def answered(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def error_of(result: Result) -> str:
    """The message of a command that failed with exit code 1: short, no traceback, nothing on standard output."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) <= 2
    return result.stderr


def tokens_read(result: Result) -> int:
    count: int = answered(result)["usage"]["document_tokens"]
    return count


# --- what is read -----------------------------------------------------------------------------------------------------


def test_prints_the_answer_and_nothing_else(ask: Focusllm, document: Path, model_folder: Path) -> None:
    """A program that reads it through a pipe wants the answer only."""
    result = ask("-d", document, QUESTION)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    engine = FocusEngine.from_pretrained(model_folder, adapter=model_folder / "adapter", progress=False)
    expected = engine.generate(QUESTION, documents=[TEXT], max_new_tokens=8)
    assert result.stdout == expected.text + "\n"


def test_json_has_text_usage_and_timings(ask: Focusllm, document: Path, model_folder: Path) -> None:
    found = answered(ask("-d", document, "--json", QUESTION))
    assert set(found) == {"text", "finish_reason", "method", "usage", "chunk_scores", "timings", "model"}
    assert found["chunk_scores"] == []  # FocusLLM reads all chunks alike
    assert found["finish_reason"] in ("stop", "length")
    usage = found["usage"]
    assert usage["cache_creation"] + usage["cache_read"] == usage["document_tokens"] == len(TEXT)
    assert usage["chunks"] == -(-len(TEXT) // CHUNK)
    assert 0 < found["timings"]["first_text_seconds"] <= found["timings"]["answer_seconds"]
    assert found["model"] == {"id": str(model_folder), "adapter": str(model_folder / "adapter"), "device": "cpu"}


def test_json_has_the_scores_of_selected_chunks(ask: Focusllm, document: Path) -> None:
    options = ("--method", "select", "--select-tokens", str(2 * CHUNK), "--layout", "chat")
    found = answered(ask("-d", document, "--json", *options, QUESTION))
    assert (found["method"], len(found["chunk_scores"])) == ("select", found["usage"]["chunks"])
    read = [chunk["tokens"] for chunk in found["chunk_scores"] if chunk["read"]]
    assert 0 < sum(read) <= 2 * CHUNK
    starts = [chunk["characters"][0] for chunk in found["chunk_scores"]]
    assert starts == sorted(starts)


def test_several_documents_are_chunked_each_alone(ask: Focusllm, document: Path, tmp_path: Path) -> None:
    second = tmp_path / "b.txt"
    second.write_text("short")
    found = answered(ask("-d", document, "--document", second, "--json", QUESTION))
    assert found["usage"]["chunks"] == -(-len(TEXT) // CHUNK) + 1
    assert found["usage"]["document_tokens"] == len(TEXT) + len("short")


def test_a_folder_is_its_text_files(ask: Focusllm, document: Path) -> None:
    (document.parent / "sub").mkdir()
    (document.parent / "sub" / "c.md").write_text("more")
    (document.parent / ".hidden").write_text("not this")
    (document.parent / "picture.png").write_bytes(b"\x89PNG\0")
    assert tokens_read(ask("-d", document.parent, "--json", QUESTION)) == len(TEXT) + len("more")


def test_says_what_it_passed_over_in_a_folder(ask: Focusllm, document: Path) -> None:
    """A file that could have held the answer must not be missing in silence."""
    (document.parent / "data.log").write_bytes(b"\0\1\2\3" * 9)
    result = ask("-d", document.parent, QUESTION)
    assert result.exit_code == 0
    assert "Passed over" in result.stderr
    assert "data.log" in result.stderr


def test_standard_input(ask: Focusllm) -> None:
    assert tokens_read(ask("-d", "-", "--json", QUESTION, stdin=TEXT.encode())) == len(TEXT)


def test_standard_input_beside_a_file(ask: Focusllm, document: Path) -> None:
    assert tokens_read(ask("-d", document, "-d", "-", "--json", QUESTION, stdin=b"four")) == len(TEXT) + 4


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
def test_any_encoding(ask: Focusllm, tmp_path: Path, encoding: str) -> None:
    """The bytes differ, the text and so the tokens do not."""
    text = "Le café de Müller ouvre à huit heures. " * 5
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode(encoding))
    assert tokens_read(ask("-d", path, "--json", QUESTION)) == len(text.encode("utf-8"))


def test_question_alone(ask: Focusllm) -> None:
    found = answered(ask("--json", QUESTION))
    assert found["usage"]["document_tokens"] == 0
    assert found["usage"]["chunks"] == 0


def test_raw_uses_no_template_and_system_does(ask: Focusllm) -> None:
    """With bytes as tokens, the prompt's length shows what was in it: BOS, template, question."""
    question = len(QUESTION) + 1
    assert answered(ask("--json", "--raw", QUESTION))["usage"]["input_tokens"] == question
    templated = question + len("user: \nassistant:")
    assert answered(ask("--json", QUESTION))["usage"]["input_tokens"] == templated
    with_system = templated + len("system: Be brief.\n")
    assert answered(ask("--json", "--system", "Be brief.", QUESTION))["usage"]["input_tokens"] == with_system


def test_seed_makes_sampling_repeatable(ask: Focusllm, document: Path) -> None:
    options = ("-d", document, "--temperature", "2", "--top-p", "0.95", "--json", QUESTION)
    first, again, other = (answered(ask("--seed", seed, *options))["text"] for seed in ("1", "1", "2"))
    assert first == again != other


@pytest.mark.parametrize("only_the_likeliest", [("--top-k", "1"), ("--min-p", "1")])
def test_sampling_can_be_cut_down_to_greedy(ask: Focusllm, document: Path, only_the_likeliest: tuple[str, str]) -> None:
    """The option would not reach the sampler, and another token be drawn at this temperature."""
    options = ("-d", document, "--json", QUESTION)
    greedy = answered(ask(*options))["text"]
    drawn = ("--temperature", "5", "--seed", "3")
    assert answered(ask(*drawn, *options))["text"] != greedy
    assert answered(ask(*drawn, *only_the_likeliest, *options))["text"] == greedy


def test_repetition_penalty(ask: Focusllm, document: Path) -> None:
    options = ("-d", document, "--json", QUESTION)
    assert answered(ask("--repetition-penalty", "50", *options))["text"] != answered(ask(*options))["text"]
    assert "repetition_penalty=0" in error_of(ask("--repetition-penalty", "0", *options))


def test_stop_ends_the_answer(ask: Focusllm, document: Path) -> None:
    whole = answered(ask("-d", document, "--json", "--raw", QUESTION))["text"]
    stop = whole[2:4]
    found = answered(ask("-d", document, "--json", "--raw", "--stop", "never there", "--stop", stop, QUESTION))
    assert found["text"] == whole[: whole.index(stop)]
    assert found["finish_reason"] == "stop"


def test_chunk_size(ask: Focusllm, document: Path) -> None:
    assert answered(ask("-d", document, "--chunk-size", "100", "--json", QUESTION))["usage"]["chunks"] == 4


def test_a_method_can_be_chosen(ask: Focusllm, document: Path) -> None:
    """The adapter's `plain_up_to=0` has every text chunked, so auto is focus here."""
    options = ("-d", document, "--json", QUESTION)
    found = {name: answered(ask("--method", name, *options)) for name in ("auto", "focus", "plain")}
    assert {name: one["method"] for name, one in found.items()} == {"auto": "focus", "focus": "focus", "plain": "plain"}
    assert [one["usage"]["chunks"] > 0 for one in found.values()] == [True, True, False]
    assert found["plain"]["text"] != found["focus"]["text"]


def test_the_method_is_told_where_documents_fit_the_window(focusllm: Focusllm, model_folder: Path) -> None:
    options = ("ask", "--model", model_folder, "--max-new-tokens", "2", "-d", "-", "--json", QUESTION)
    assert answered(focusllm(*options, stdin=TEXT.encode()))["method"] == "plain"


def test_a_plain_model_refuses_what_exceeds_its_window(ask: Focusllm, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("x" * WINDOW)
    assert f"usable window has {WINDOW} positions" in error_of(ask("--method", "plain", "-d", path, QUESTION))


def test_ctrl_c_before_anything_was_read(ask: Focusllm, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FocusEngine, "from_pretrained", pressed)
    result = ask(QUESTION)
    assert result.exit_code == 130
    assert result.stderr.strip() == "Interrupted."


def test_ctrl_c_while_reading(ask: Focusllm, document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    document.write_text("Read by no other test, so that no engine keeps its chunks. " * 5)
    monkeypatch.setattr(FocusMethod, "prefill", pressed)
    result = ask("-d", document, QUESTION)
    assert result.exit_code == 130
    assert "there is no answer yet" in result.stderr
    assert result.stdout == ""


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_text_where_its_file_is_meant(ask: Focusllm) -> None:
    """`-d "$(cat book.txt)"` would end in a traceback, with the whole book in it."""
    error = error_of(ask("-d", "call me Ishmael " * 100, QUESTION))
    assert "cannot be read (File name too long)" in error
    assert len(error) < 400


def test_json_is_ascii(ask: Focusllm, document: Path) -> None:
    """A console with few letters would put question marks in the place of others."""
    result = ask("-d", document, "--json", "Où?")
    assert result.stdout.isascii(), result.stdout


def test_missing_file(ask: Focusllm) -> None:
    assert "no/such/file.txt: there is no such file." in error_of(ask("-d", "no/such/file.txt", QUESTION))


def test_binary_file(ask: Focusllm, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF\0\1\2" * 50)
    assert "binary" in error_of(ask("-d", path, QUESTION))


@pytest.mark.parametrize("content", [b"", b" \n\t "])
def test_file_without_text(ask: Focusllm, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    assert "empty.txt: holds no text." in error_of(ask("-d", path, QUESTION))


def test_empty_standard_input(ask: Focusllm) -> None:
    assert "standard input: holds no text." in error_of(ask("-d", "-", QUESTION))


def test_folder_without_text(ask: Focusllm, tmp_path: Path) -> None:
    assert "no text files below this folder" in error_of(ask("-d", tmp_path, QUESTION))


def test_empty_question(ask: Focusllm) -> None:
    assert "question is empty" in error_of(ask("--raw", " "))


def test_too_long_for_the_window(ask: Focusllm, tmp_path: Path) -> None:
    """The message says how much there is, how much fits, and what to change."""
    path = tmp_path / "long.txt"
    path.write_text("x" * (WINDOW + 10))
    message = error_of(ask("-d", path, "--chunk-size", "1", QUESTION))
    assert f"A memory of {WINDOW + 10} chunks" in message
    assert f"usable window has {WINDOW} positions" in message
    assert re.search(r"\d+ chunks fit", message)
    assert "larger chunk_size" in message


@pytest.mark.parametrize("name", ["no/such/model", "/no/such/model"])
def test_bad_model(focusllm: Focusllm, name: str) -> None:
    assert name in error_of(focusllm("ask", "--model", name, QUESTION))


def test_model_folder_without_a_model(focusllm: Focusllm, tmp_path: Path) -> None:
    assert "without a config.json" in error_of(focusllm("ask", "--model", tmp_path, QUESTION))


def test_bad_adapter_folder(focusllm: Focusllm, model_folder: Path, tmp_path: Path) -> None:
    message = error_of(focusllm("ask", "--model", model_folder, "--adapter", tmp_path, QUESTION))
    assert "focusllm_adapter.json" in message


def test_unknown_device(ask: Focusllm) -> None:
    assert "device='abacus'" in error_of(ask("--device", "abacus", QUESTION))


def test_unknown_dtype(ask: Focusllm) -> None:
    assert "dtype='int3'" in error_of(ask("--dtype", "int3", QUESTION))


def test_unknown_method(ask: Focusllm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before minutes of loading."""
    monkeypatch.delattr(FocusEngine, "from_pretrained")
    assert "method='fokus': choose from 'auto', 'focus', 'plain'" in error_of(ask("--method", "fokus", QUESTION))


def test_what_messages_advise_can_be_set(ask: Focusllm, document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`parallel_chunks` and `dynamic_prompt` would be advice for users of Python only."""
    seen: list[FocusConfig] = []
    load = FocusEngine.from_pretrained

    def noted(*arguments: Any, config: FocusConfig, **options: Any) -> FocusEngine:
        seen.append(config)
        return load(*arguments, config=config, **options)

    monkeypatch.setattr(FocusEngine, "from_pretrained", noted)
    answered(ask("-d", document, "--dynamic-prompt", "8", "--parallel-chunks", "1", "--json", QUESTION))
    assert seen == [FocusConfig(dynamic_prompt=8, parallel_chunks=1)]


def test_chunk_size_that_cannot_work(ask: Focusllm) -> None:
    assert f"chunk_size={WINDOW}" in error_of(ask("--chunk-size", str(WINDOW), QUESTION))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--chunk-size", "0"),
        ("--chunk-size", "-5"),
        ("--max-new-tokens", "0"),
        ("--max-new-tokens", "many"),
        ("--temperature", "-1"),
        ("--top-p", "1.5"),
        ("--top-k", "-1"),
        ("--min-p", "2"),
        ("--seed", "-1"),
        ("--seed", str(2**64)),
        ("--no-such-option",),
        ("-d", "-", "-d", "-"),
        ("a second question",),
    ],
)
def test_wrong_usage(ask: Focusllm, arguments: tuple[str, ...]) -> None:
    result = ask(*arguments, QUESTION)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert result.stdout == ""


def test_no_question(ask: Focusllm) -> None:
    assert ask().exit_code == 2
