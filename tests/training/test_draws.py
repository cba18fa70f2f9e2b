"""What is drawn for a training example varies: sizes of chunks, memory and local context, and where a text is cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from focus_core.training.examples import TrainingExample
from tests.training.cases import examples, text

DOCUMENTS = {"documents": [text(20), text(11)], "question": text(9), "answer": "w3"}


def drawn(folder: Path, *records: dict[str, object], **settings: object) -> list[TrainingExample]:
    make = examples(folder, *records, dynamic_prompts=(2, 4), local_lengths=(8, 20), **settings)
    return [make(number) for number in range(100)]


def chunk_sizes(made: list[TrainingExample]) -> set[int]:
    """Tokens after the BOS of chunks that another one follows, so that they are whole."""
    return {len(example.chunks[0]) - 1 for example in made if len(example.chunks) > 1}


def prompt_lengths(made: list[TrainingExample]) -> set[int]:
    return {len(question.dynamic_prompt) - 1 for example in made for question in example.questions}


@pytest.mark.parametrize("objective", ["continuation", "reconstruction"])
def test_every_size_of_a_text_is_drawn(tmp_path: Path, objective: str) -> None:
    """Projections that know one size of chunk, memory or prompt would find nothing with another (paper §3)."""
    made = drawn(tmp_path, {"text": text(200)}, objectives={objective: 1})
    assert chunk_sizes(made) == {8, 16}
    assert {len(example.chunks) for example in made} == {1, 2, 3, 4}
    assert prompt_lengths(made) == {2, 4}
    spans = {len(q.local_context) - 1 + len(q.answer) for example in made for q in example.questions}
    assert len(spans) > 8
    assert 8 <= min(spans) <= max(spans) <= 20


@pytest.mark.parametrize("objective", ["continuation", "reconstruction"])
def test_texts_are_cut_anywhere(tmp_path: Path, objective: str) -> None:
    """With last chunks that are always whole, or a text's beginning alone, the rest would never be trained."""
    made = drawn(tmp_path, {"text": text(200)}, objectives={objective: 1})
    assert len({example.chunks[0][1] for example in made}) > 30
    assert len({len(example.chunks[-1]) for example in made}) > 10
    distances = {example.questions[0].local_context[1] - example.chunks[0][1] for example in made}
    assert len(distances) > 15


def test_questions_about_documents_are_read_with_every_size(tmp_path: Path) -> None:
    made = drawn(tmp_path, DOCUMENTS, chunk_sizes=(8, 10, 16), max_chunks=6)
    assert chunk_sizes(made) == {8, 10, 16}
    assert prompt_lengths(made) == {2, 4}


def test_records_are_drawn_in_no_order(tmp_path: Path) -> None:
    """A file's beginning alone would be trained, or each record at a fixed interval."""
    records = [{**DOCUMENTS, "answer": f"w{number}"} for number in range(4)]
    answers = [example.questions[0].answer[0] for example in drawn(tmp_path, *records)]
    assert len(set(answers)) == 4
    assert len(set(answers[::4])) > 1
