"""What is drawn for a training example varies: sizes of chunks, memory and local context, and where a text is cut."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from focus_core import ConfigError, FocusConfig
from focus_core.training.config import TrainingConfig
from focus_core.training.data import FileExamples
from focus_core.training.examples import SupervisedQuestion, TrainingExample
from focus_core.training.records import read_records
from tests.engines import QUESTION, A, B, make_engine
from tests.training.cases import examples, ids, text, tokenizer

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


# --- files -----------------------------------------------------------------------------------------------------------


def of_two_files(folder: Path, mixture: dict[str, float]) -> list[int]:
    """The file of each of 300 examples: 9 records in the first, one in the second."""
    for name, answers in (("long", ["w1"] * 9), ("short", ["w2"])):
        lines = (json.dumps({"documents": [text(9)], "question": "w3", "answer": answer}) for answer in answers)
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    files = [folder / "long.jsonl", folder / "short.jsonl"]
    sizes = {"chunk_sizes": (8,), "dynamic_prompts": (4,), "local_lengths": (8, 20), "max_chunks": 4}
    config = TrainingConfig(folder, data=files, mixture=mixture, **sizes)  # type: ignore[arg-type]
    limits = FocusConfig(chunk_size=8, dynamic_prompt=4).resolve(128)
    make = FileExamples(config, [one for file in files for one in read_records(file)], tokenizer(), limits)
    return [make(number).questions[0].answer[0] - ids("w1")[0] for number in range(300)]


def test_files_have_the_shares_of_the_mixture(tmp_path: Path) -> None:
    assert sum(of_two_files(tmp_path, {})) == pytest.approx(30, abs=20)  # one of ten records
    assert sum(of_two_files(tmp_path, {"long.jsonl": 1, "short.jsonl": 3})) == pytest.approx(225, abs=30)
    assert sum(of_two_files(tmp_path, {"long.jsonl": 0, "short.jsonl": 1})) == 300


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"long.jsonl": 1}, "mixture: short.jsonl has no share"),
        ({"long.jsonl": 1, "short.jsonl": 1, "other.jsonl": 1}, "mixture: unknown 'other.jsonl'. Known: long.jsonl"),
        ({"long.jsonl": 0, "short.jsonl": 0}, "mixture: all are off"),
        ({"long.jsonl": -1, "short.jsonl": 1}, "mixture: long.jsonl=-1: must lie between 0"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(tmp_path: Path, mixture: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        of_two_files(tmp_path, mixture)


# --- documents that are marked ----------------------------------------------------------------------------------------


def marked(*gold: list[int], documents: int = 6) -> dict[str, object]:
    """Documents that are told by their words, and a question for each list of gold ones."""
    questions = [{"question": f"w{100 + n}", "answer": f"w{110 + n} w1 w2 w3", "gold": g} for n, g in enumerate(gold)]
    return {"documents": [f"w{n} " * 5 for n in range(documents)], "questions": questions}


def documents_of(example: TrainingExample) -> list[int]:
    first = ids("w0")[0]
    return [chunk[1] - first for chunk in example.chunks]


def question_of(question: SupervisedQuestion) -> int:
    return question.answer[0] - ids("w110")[0]


def test_gold_documents_are_among_those_drawn_and_the_others_vary(tmp_path: Path) -> None:
    made = drawn(tmp_path, marked([4], [1, 2]), max_documents=3, questions_per_example=1)
    for example in made:
        numbers, (question,) = documents_of(example), example.questions
        assert numbers == sorted(set(numbers))
        assert {0: {4}, 1: {1, 2}}[question_of(question)] <= set(numbers)
    assert {question_of(example.questions[0]) for example in made} == {0, 1}
    assert {len(example.chunks) for example in made} == {1, 2, 3}
    assert {number for example in made for number in documents_of(example)} == set(range(6))


def test_questions_are_drawn_together_as_long_as_their_gold_documents_fit(tmp_path: Path) -> None:
    made = drawn(tmp_path, marked([0], [0], [1], [2, 3]), max_documents=2, questions_per_example=3)
    found = [{question_of(question) for question in example.questions} for example in made]
    golds = {0: {0}, 1: {0}, 2: {1}, 3: {2, 3}}
    for example, questions in zip(made, found, strict=True):
        assert set().union(*(golds[one] for one in questions)) <= set(documents_of(example))
        assert len(questions) <= 3
    assert {0, 1, 2} in found
    assert {3} in found


def test_without_marks_all_documents_are_read(tmp_path: Path) -> None:
    """A question whose answer may stand anywhere would otherwise be asked of documents without it."""
    record = marked([0], [])
    made = drawn(tmp_path, record, max_documents=2, max_chunks=6)
    assert {len(example.chunks) for example in made} == {6}


def test_a_question_of_more_gold_documents_than_may_be_drawn_is_refused(tmp_path: Path) -> None:
    make = examples(tmp_path, marked([0, 1, 2]), max_documents=2)
    with pytest.raises(ConfigError, match="line 1: a question has 3 gold documents, but max_documents=2"):
        make.check(lambda done, all_: None)


@pytest.mark.parametrize(
    "gold",
    [
        [6],
        [-1],
        ["1"],
        [True],
        1,
        [{}],
        [{"document": 6}],
        [{"document": 0, "start": 1}],
        [{"document": 0, "start": 1, "stop": 1}],
        [{"document": 0, "start": -1, "stop": 1}],
        [{"document": 0, "start": 0, "stop": 3}],
        [{"document": 0, "start": 0.0, "stop": 1}],
    ],
)
def test_marks_that_name_no_document_are_refused(tmp_path: Path, gold: object) -> None:
    record = {"documents": ["w1"] * 6, "question": "w2", "answer": "w3", "gold": gold}
    with pytest.raises(ConfigError, match=r"line 1: field 'gold' is .*numbers of documents, 0 to 5"):
        examples(tmp_path, record)


def test_the_first_target_of_an_answer_stays_and_the_others_vary(tmp_path: Path) -> None:
    made = drawn(tmp_path, DOCUMENTS | {"answer": "w1 w2 w3 w4"}, targets_per_answer=2)
    targets = {question.targets for example in made for question in example.questions}
    assert targets == {(0, 1), (0, 2), (0, 3), (0, 4)}  # the end of the turn is one of them
    assert {example.questions[0].targets for example in drawn(tmp_path, DOCUMENTS, targets_per_answer=9)} == {(0, 1)}


def test_in_layout_chat_the_rows_are_those_of_an_engine(tmp_path: Path) -> None:
    engine = make_engine(layout="chat", chunk_size=48, dynamic_prompt=48)
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"documents": [A, B], "question": QUESTION, "answer": "Here."}) + "\n")
    sizes = {"chunk_sizes": (48,), "dynamic_prompts": (48,), "local_lengths": (8, 64), "max_chunks": 32}
    config = TrainingConfig(tmp_path, layout="chat", **sizes)  # type: ignore[arg-type]
    limits = replace(engine.config, window=512)
    example = FileExamples(config, read_records(path), engine.tokenizer, limits)(0)
    answer = engine.generate(QUESTION, [A, B], max_new_tokens=1, method="focus")
    assert answer.plan is not None
    (question,), used = example.questions, answer.plan.question
    assert example.chunks == [chunk.row for chunk in used.chunks]
    assert question.dynamic_prompt == used.dynamic_prompt
    assert question.local_context == used.local_context
    assert engine.tokenizer.decode(question.answer) == " Here.\n<eos>"
    assert config.for_use().layout == "chat"
