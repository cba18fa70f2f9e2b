"""A method that this package does not know runs through everything: one file, and one line in the table."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from focus_core import ConfigError, Finished, FocusEngine
from focus_core.cli.app import app
from focus_core.methods.table import METHODS
from tests.engines import QUESTION, A, B, C, make_engine
from tests.methods.surest import SurestMethod
from tests.tiny import CHUNK


@pytest.fixture(autouse=True)
def _third_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, SurestMethod.name, SurestMethod)


@pytest.fixture
def engine() -> FocusEngine:
    return make_engine(method="surest")


@torch.no_grad()
def _surest_alone(engine: FocusEngine, question: str, documents: list[str], new_tokens: int) -> str:
    """The slow way: one chunk after the other through transformers, and the surest goes on alone."""
    model, layout = engine.focus.model, engine.layout
    prompt = engine.shared.tokenizer.prompt([{"role": "user", "content": question}], chat_template=True)
    rows = []
    for text in documents:
        tokens = engine.tokenize(text)
        for start in range(0, len(tokens), engine.config.chunk_size):
            chunk = tokens[start : start + engine.config.chunk_size]
            rows.append(torch.tensor([[1, *chunk, *layout.dynamic_prompt(prompt)]]))
    surest = max(rows, key=lambda row: float(model(row).logits[0, -1].softmax(-1).max()))
    answer = model.generate(surest, max_new_tokens=new_tokens, do_sample=False)[0, surest.shape[1] :]
    return str(engine.tokenizer.decode(answer, skip_special_tokens=True).lstrip())


@pytest.mark.parametrize("documents", [[A], [B, A], [C, B, A]])
def test_generate_and_stream(engine: FocusEngine, documents: list[str]) -> None:
    wanted = _surest_alone(engine, QUESTION, documents, 8)
    answer = engine.generate(QUESTION, documents, max_new_tokens=8)
    assert (answer.text, answer.method, answer.usage.chunks > 0) == (wanted, "surest", True)
    events = list(engine.stream(QUESTION, documents, max_new_tokens=8))
    assert "".join(event.text for event in events) == wanted
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.method, end.usage.cache_creation) == ("surest", 0)


def test_batches(engine: FocusEngine) -> None:
    questions = ["Why?", "A much longer question about the second of them?", "Where"]
    answers = engine.generate(questions, [A, B], max_new_tokens=8)
    assert [answer.text for answer in answers] == [_surest_alone(engine, q, [A, B], 8) for q in questions]
    apart = engine.generate(questions[:2], [[A], [B, C]], max_new_tokens=8)
    assert [answer.text for answer in apart] == [
        _surest_alone(engine, questions[0], [A], 8),
        _surest_alone(engine, questions[1], [B, C], 8),
    ]


def test_threads(engine: FocusEngine) -> None:
    questions = [f"Question {number}" + "?" * number for number in range(6)]
    answers: dict[str, str] = {}

    def ask(question: str) -> None:
        answers[question] = engine.generate(question, [A, B], max_new_tokens=8).text

    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {question: _surest_alone(engine, question, [A, B], 8) for question in questions}


def test_per_call_beside_other_methods() -> None:
    """Chunks that FocusLLM keeps lack the last layer: another method would read what is not there."""
    engine = make_engine()
    focus = engine.generate(QUESTION, [A, B], max_new_tokens=8)
    surest = engine.generate(QUESTION, [A, B], max_new_tokens=8, method="surest")
    again = engine.generate(QUESTION, [A, B], max_new_tokens=8)
    assert (focus.method, surest.method) == ("focus", "surest")
    assert surest.text == _surest_alone(engine, QUESTION, [A, B], 8)
    assert again.text == focus.text
    assert surest.usage.cache_creation > 0
    assert again.usage.cache_creation == 0  # of a chunk with all layers FocusLLM leaves one unread


def test_command_line(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * (3 * CHUNK))
    arguments = ["ask", "-d", str(tmp_path / "a.txt"), "--model", str(model_folder), "--device", "cpu", "--json"]
    arguments += ["--chunk-size", str(CHUNK), "--dynamic-prompt", "32", "--max-new-tokens", "4", "Why?"]
    result = CliRunner().invoke(app, [*arguments, "--method", "surest"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["method"], found["usage"]["chunks"]) == ("surest", 3)


def _langchain(engine: FocusEngine) -> Iterator[tuple[str, Any]]:
    from focus_integrations.langchain import ChatFocusLLM, FocusLLM

    message = ChatFocusLLM.from_engine(engine).invoke(QUESTION, documents=[A, B], max_tokens=8)
    yield str(message.content), message.response_metadata["method"]
    result = FocusLLM.from_engine(engine).generate([QUESTION], documents=[A, B], max_tokens=8).generations[0][0]
    yield result.text, (result.generation_info or {})["method"]


def _llama_index(engine: FocusEngine) -> Iterator[tuple[str, Any]]:
    from focus_integrations.llama_index import FocusLLM

    response = FocusLLM.from_engine(engine).complete(QUESTION, documents=[A, B], max_tokens=8)
    yield response.text, response.raw["method"]


@pytest.mark.parametrize("framework", [_langchain, _llama_index])
def test_frameworks(engine: FocusEngine, framework: Any) -> None:
    for text, method in framework(engine):
        assert (text, method) == (_surest_alone(engine, QUESTION, [A, B], 8), "surest")


def test_unknown_methods_are_named() -> None:
    with pytest.raises(
        ConfigError, match="method='focs': choose from 'auto', 'focus', 'plain', 'select', 'experts', 'surest'"
    ):
        make_engine(method="focs")
    with pytest.raises(ConfigError, match="method='focs'"):
        make_engine().generate(QUESTION, [A], method="focs")


def test_the_methods_of_the_package() -> None:
    """Plain by name where it fits, FocusLLM by name where the plain model would fit, and a prompt without chunks."""
    engine = make_engine(plain_up_to=400)
    assert engine.generate(QUESTION, [A], max_new_tokens=2).method == "plain"
    assert engine.generate(QUESTION, [A], max_new_tokens=2, method="focus").method == "focus"
    assert engine.generate(QUESTION, max_new_tokens=2, method="focus").method == "plain"
    assert make_engine().generate(QUESTION, [A], max_new_tokens=2, method="plain").method == "plain"
