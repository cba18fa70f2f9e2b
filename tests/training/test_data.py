"""Examples from JSONL: what is drawn, that it depends on the number alone, and errors that name line and field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_core.config import FocusConfig
from focus_core.errors import ConfigError
from focus_core.methods.focus import FocusModel
from focus_core.text.tokenizer import TextTokenizer, load_tokenizer
from focus_core.training.config import TrainingConfig
from focus_core.training.data import FileExamples
from focus_core.training.examples import TrainingExample
from focus_core.training.records import Gold, read_records, record_of
from tests.training.cases import WORDS, examples, ids, text, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples that hypothesis tries."""
    return tmp_path_factory.mktemp("drawn")


def without_bos(rows: list[list[int]]) -> list[int]:
    assert all(row[0] == 1 for row in rows)
    return [token for row in rows for token in row[1:]]


@st.composite
def settings_of_spans(draw: st.DrawFn) -> dict[str, Any]:
    """What may be drawn, from chunks of two tokens to spans that are longer than the memory may be."""
    shortest = draw(st.integers(2, 90))
    return {
        "seed": draw(st.integers(0, 5)),
        "chunk_sizes": tuple(draw(st.lists(st.integers(2, 40), min_size=1, max_size=3, unique=True))),
        "max_chunks": draw(st.integers(1, 6)),
        "local_lengths": (shortest, draw(st.integers(shortest, 90))),
        "targets_per_span": draw(st.integers(1, 8)),
        "dynamic_prompts": (draw(st.integers(1, 50)),),
    }


@given(words=st.integers(4, 200), number=st.integers(0, 10**9), settings=settings_of_spans())
def test_a_continuation_follows_what_is_chunked(
    folder: Path, words: int, number: int, settings: dict[str, Any]
) -> None:
    """A gap before the span, or a memory that was cut to fit, would teach to continue what was never read."""
    example = examples(folder, {"text": text(words)}, objectives={"continuation": 1}, **settings)(number)
    chunked, question = without_bos(example.chunks), example.questions[0]
    span = question.local_context[1:] + question.answer
    whole = ids(text(words))
    assert chunked + span == whole[whole.index(chunked[0]) :][: len(chunked + span)]
    assert_within(settings, example)


@given(words=st.integers(4, 200), number=st.integers(0, 10**9), settings=settings_of_spans())
def test_a_reconstruction_repeats_a_part_of_what_is_chunked(
    folder: Path, words: int, number: int, settings: dict[str, Any]
) -> None:
    """A memory that was cut to fit could have lost what is to be repeated."""
    example = examples(folder, {"text": text(words)}, objectives={"reconstruction": 1}, **settings)(number)
    chunked, question = without_bos(example.chunks), example.questions[0]
    span = question.local_context[1:] + question.answer
    start = chunked.index(span[0])
    assert chunked[start : start + len(span)] == span
    assert_within(settings, example)


def assert_within(settings: dict[str, Any], example: TrainingExample) -> None:
    question, (prompt,) = example.questions[0], settings["dynamic_prompts"]
    assert 1 <= len(example.chunks) <= settings["max_chunks"]
    assert max(map(len, example.chunks)) - 1 <= max(settings["chunk_sizes"])
    assert 1 <= len(question.answer) <= settings["targets_per_span"]
    assert 2 <= len(question.local_context[1:] + question.answer) <= settings["local_lengths"][1]
    local = question.local_context[1:]
    assert question.dynamic_prompt in [[1, *local[-min(prompt, size) :]] for size in settings["chunk_sizes"]]


def test_questions_of_one_record_share_its_chunks(tmp_path: Path) -> None:
    asked = [{"question": "w1 w2", "answer": "w3"}, {"prompt": "w4", "answer": "w5 w6"}]
    example = examples(tmp_path, {"documents": [text(10), text(3)], "questions": asked})(0)
    templated, plain = example.questions
    assert templated.local_context == ids("<bos> user w1 w2 bot")
    assert templated.answer == ids("w3 <eos>")
    assert plain.local_context == ids("<bos> w4")
    assert plain.answer == ids("w5 w6 <eos>")
    assert without_bos(example.chunks) == ids(text(10)) + ids(text(3))


def test_a_template_that_refuses_is_named(tmp_path: Path) -> None:
    """Its own kind of error would end the command in a traceback."""
    record = {"documents": [text(9)], "question": "word", "answer": "word"}
    made = examples(tmp_path, record, template="{{ raise_exception('alternate, please') }}")
    with pytest.raises(ConfigError, match=r"data\.jsonl, line 1: .*chat template refuses .*alternate, please"):
        made(0)


def test_a_question_without_chat_template_is_taken_as_it_stands(tmp_path: Path) -> None:
    record = {"documents": [text(10)], "question": "w1", "answer": "w2"}
    question = examples(tmp_path, record, template=None)(0).questions[0]
    assert (question.local_context, question.answer) == (ids("<bos> w1"), ids("w2 <eos>"))


def test_example_i_depends_on_i_and_the_seed_alone(tmp_path: Path) -> None:
    records = [{"text": text(100)}, {"documents": [text(20)], "question": "w1", "answer": "w2"}]
    first, second = examples(tmp_path, *records), examples(tmp_path, *records)
    forwards = [first(number) for number in range(20)]
    assert [second(number) for number in reversed(range(20))] == forwards[::-1]
    assert {example.objective for example in forwards} == {"continuation", "reconstruction", "answering"}
    assert [examples(tmp_path, *records, seed=1)(number) for number in range(20)] != forwards


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"txt": "a"}, "line 2: needs the field 'text' or the field 'documents'"),
        ({"text": " "}, "line 2: field 'text' must be a text that is not empty"),
        ({"documents": [], "question": "a", "answer": "b"}, "line 2: field 'documents' must be a list"),
        ({"documents": ["a", 3], "question": "a", "answer": "b"}, r"line 2: field 'documents\[1\]' .* it is 3"),
        ({"documents": ["a"], "answer": "b"}, "line 2: a question needs either the field 'question'"),
        ({"documents": ["a"], "question": "a"}, "line 2: field 'answer' .* is missing"),
        ({"text": "a", "documents": ["a"]}, "line 2: has the field 'text' and 'documents' beside it"),
        ({"documents": ["a"], "questions": [], "answer": "b"}, "line 2: has the field 'questions' and 'answer'"),
        ({"text": "half \ud83d"}, "line 2: field 'text' holds half of a character"),
        ({"documents": ["a"], "questions": []}, "line 2: field 'questions' must be a list of at least one"),
    ],
)
def test_errors_name_line_and_field(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        examples(tmp_path, {"text": "fine"}, record)


def test_documents_of_too_many_chunks_are_refused_not_cut(tmp_path: Path) -> None:
    record = {"documents": [text(100)], "question": "w1", "answer": "w2"}
    with pytest.raises(ConfigError, match="line 1: field 'documents' makes 7 chunks of 16 tokens, but max_chunks=4"):
        examples(tmp_path, record)(0)


def test_a_question_that_exceeds_the_window_is_refused_not_cut(tmp_path: Path) -> None:
    record = {"documents": [text(20)], "question": text(150), "answer": "w2"}
    with pytest.raises(ConfigError, match=r"line 1: A local context of 153 tokens"):
        examples(tmp_path, record)(0)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"documents": [text(100)], "question": "w1", "answer": "w2"}, "line 2: .* makes 7 chunks of 16 tokens"),
        ({"documents": [text(20)], "question": text(150), "answer": "w2"}, "line 2: A local context of 153 tokens"),
        ({"text": "w1 w2"}, "line 2: field 'text' has 2 tokens, too few"),
    ],
)
def test_what_will_not_fit_is_found_before_the_first_step(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    fine = {"documents": [text(20)], "question": "w1", "answer": "w2"}
    with pytest.raises(ConfigError, match=message):
        examples(tmp_path, fine, record).check(lambda done, all_: None)


def test_a_question_must_fit_after_the_most_chunks_that_may_be_drawn(tmp_path: Path) -> None:
    record = {"documents": [text(60)], "question": text(117), "answer": "w2"}
    for sizes, fits in (((16,), True), ((16, 8), False)):
        found = examples(tmp_path, record, chunk_sizes=sizes, max_chunks=8)
        if fits:
            found.check(lambda done, all_: None)
        else:
            with pytest.raises(ConfigError, match="A memory of 8 chunks"):
                found.check(lambda done, all_: None)


def test_an_answer_must_fit_after_the_longest_chunk_that_may_be_drawn(tmp_path: Path) -> None:
    record = {"documents": [text(30)], "question": "w1", "answer": text(95)}
    examples(tmp_path, record, chunk_sizes=(8,)).check(lambda done, all_: None)
    with pytest.raises(ConfigError, match="A chunk of 31 tokens"):
        examples(tmp_path, record, chunk_sizes=(8, 64)).check(lambda done, all_: None)


def test_the_check_looks_at_every_record_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    records = ({"text": text(9)}, {"documents": ["w1"], "question": "w1", "answer": "w2"})
    examples(tmp_path, *records).check(lambda done, all_: seen.append((done, all_)))
    assert seen == [(1, 2), (2, 2)]


def test_line_ends_within_a_text_end_no_record(tmp_path: Path) -> None:
    record = {"text": "one\u2028two\u0085three four"}
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record, ensure_ascii=False) + "\r\n" + json.dumps(record), encoding="utf-8")
    assert [found.text for found in read_records(path)] == [record["text"]] * 2


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ConfigError, match=r"data\.jsonl, line 2: not JSON"):
        read_records(tmp_path / "data.jsonl")


def test_folders_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_records(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        TrainingConfig.from_toml(tmp_path)


def test_an_objective_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="answering is on, but no record of the data has 'documents'"):
        examples(tmp_path, {"text": text(9)}, objectives={"answering": 1.0})


def test_sizes_beyond_the_window_are_refused(tmp_path: Path) -> None:
    examples(tmp_path, {"text": text(9)}, chunk_sizes=(118,))  # a prompt of 5, two BOS and 3 targets
    with pytest.raises(ConfigError, match="need up to 129 positions"):
        examples(tmp_path, {"text": text(9)}, chunk_sizes=(119,))
    with pytest.raises(ConfigError, match="usable window has 128"):
        examples(tmp_path, {"text": text(9)}, chunk_sizes=(128,))
    with pytest.raises(ConfigError, match="usable window has 128"):
        examples(tmp_path, {"text": text(9)}, local_lengths=(2, 128))


def test_toml_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(
        'model = "some/model"\noutput = "out"\ndata = ["a.jsonl"]\nrank = 8\nchunk_sizes = [64, 128]\n'
        "[objectives]\ncontinuation = 1\n[used_with]\nchunk_size = 128\n"
    )
    config = TrainingConfig.from_toml(tmp_path / "train.toml")
    assert (config.output, config.data) == (tmp_path / "out", (tmp_path / "a.jsonl",))
    assert (config.rank, config.chunk_sizes) == (8, (64, 128))
    assert config.for_use() == FocusConfig(chunk_size=128)
    largest = replace(config, used_with=None, local_lengths=(5, 300), dynamic_prompts=(8, 32)).for_use()
    assert largest == FocusConfig(chunk_size=128, local_window=300, dynamic_prompt=32)


def test_model_and_adapter_beside_the_toml_are_found(tmp_path: Path) -> None:
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "train.toml").write_text('model = "base"\nadapter = "adapter"\noutput = "out"\n')
    config = TrainingConfig.from_toml(tmp_path / "train.toml")
    assert (config.model, config.adapter) == (str(tmp_path / "base"), str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rat = 1", "train.toml: unknown key 'learning_rat'. Did you mean 'learning_rate'"),
        ('steps = "many"', "steps='many': must be of type int"),
        ("steps = 0", "steps=0: must be at least 1"),
        ("rank = -1", "rank=-1: must be at least 1, or 0 for full copies"),
        ('chunk_sizes = ["a"]', "chunk_sizes=['a']: must be a list of int"),
        ("dynamic_prompts = [1.5]", "dynamic_prompts=[1.5]: must be a list of int"),
        ("local_lengths = [1, 2, 3]", "local_lengths=[1, 2, 3]: must be a list of 2 of int"),
        ("betas = [0.9]", "betas=[0.9]: must be a list of 2 of int or float"),
        ("data = 3", "data=3: must be a list"),
        ("used_with = 3", "used_with=3: must be a table"),
        ('objectives = {answering = "x"}', "answering='x': must be a number"),
        ("chunk_sizes = 64", "chunk_sizes=64: must be a list"),
        ("objectives = {answers = 1}", "unknown 'answers'. Known: continuation, reconstruction, answering"),
        ("used_with = {chunks = 1}", "has an unknown key. Known: chunk_size"),
        ('mixed_precision = "half"', "mixed_precision='half': use one of"),
        ('optimizer = "muon"\nmixed_precision = "fp16"', "use mixed_precision='bf16' or optimizer='adamw'"),
        ("= 3", "is not TOML"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "train.toml").write_text(f'output = "out"\n{line}\n')
    with pytest.raises(ConfigError) as raised:
        TrainingConfig.from_toml(tmp_path / "train.toml")
    assert message in str(raised.value)


@pytest.mark.parametrize("boundaries", [None, "tokens", "paragraph"])
def test_chunks_are_trained_as_they_are_used(tmp_path: Path, model_folder: Path, boundaries: str | None) -> None:
    path = tmp_path / "data.jsonl"
    documents = ["the dog sat\n\n" * 8]
    path.write_text(json.dumps({"documents": documents, "question": "who sat", "answer": "dog"}))
    sizes: dict[str, Any] = {"chunk_sizes": (32,), "local_lengths": (6, 40), "dynamic_prompts": (8,)}
    config = TrainingConfig(tmp_path, data=(path,), used_with=FocusConfig(boundaries=boundaries), **sizes)
    focus = FocusModel.from_pretrained(model_folder, device="cpu")
    chunks = FileExamples.open(config, focus, str(model_folder))(0).chunks
    text = load_tokenizer(model_folder).decode
    at_paragraphs = [text(chunk).endswith("\n\n") for chunk in chunks]
    assert len(chunks) > 1
    assert all(at_paragraphs) == (boundaries == "paragraph")


def test_null_is_no_field_and_any_sequence_a_list() -> None:
    """Rows of a dataset have all columns, and nothing where others have a value."""
    row = {"text": None, "documents": ("a b", "c"), "question": None, "questions": None, "gold": None}
    record = record_of("row 1", {**row, "prompt": "Who?", "answer": "a"})
    assert (record.documents, record.questions[0].text, record.questions[0].gold) == (("a b", "c"), "Who?", ())
    asked = MappingProxyType({"question": "Who?", "prompt": None, "answer": "a", "gold": (1,)})
    assert record_of("row 2", {**row, "questions": (asked,)}).questions[0].gold == (Gold(1),)
    assert record_of("row 3", {"text": "a b", "documents": None, "answer": None}).text == "a b"


def test_a_teacher_must_see_its_whole_row(tmp_path: Path) -> None:
    record = {"documents": [text(16)], "question": " ".join(["w1"] * 90), "answer": "w2 w3"}
    assert examples(tmp_path, record)(0)  # the memory needs the question's end alone
    sizes = {"local_lengths": (6, 120), "chunk_sizes": (16,), "distillation": 0.5}
    made = examples(tmp_path, {**record, "question": " ".join(["w1"] * 110)}, **sizes)
    with pytest.raises(ConfigError, match=r"line 1: the teacher would read 1\d\d tokens, .* window has 128"):
        made(0)


def test_layout_chat_needs_a_chat_template(tmp_path: Path) -> None:
    record = {"documents": [text(16)], "prompt": "w1", "answer": "w2"}
    with pytest.raises(ConfigError, match=r"layout='chat': the model has no chat template\. Set layout='raw'"):
        examples(tmp_path, record, template=None, layout="chat")


def test_an_answer_without_tokens_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextTokenizer, "parse", lambda self, text: [])
    with pytest.raises(ConfigError, match="line 1: field 'answer' is 'w2', which the tokenizer makes no token of"):
        examples(tmp_path, {"documents": [text(16)], "prompt": "w1", "answer": "w2"})(0)


def test_chunks_end_where_those_in_use_do(tmp_path: Path) -> None:
    """An adapter may say that they end at paragraphs; then there are more of them, and fewer sizes fit."""
    paragraphs = "\n\n".join(" ".join(WORDS[5 * part : 5 * part + 5]) for part in range(4))
    record = {"documents": [paragraphs], "question": "w1", "answer": "w2"}
    made = examples(tmp_path, record, chunk_sizes=(8,), max_chunks=4)
    assert [len(chunk) - 1 for chunk in made(0).chunks] == [8, 8, 4]
    limits = FocusConfig(chunk_size=8, dynamic_prompt=5, boundaries="paragraph").resolve(128)
    read = read_records(tmp_path / "data.jsonl")
    settings = {"chunk_sizes": (8,), "dynamic_prompts": (5,), "local_lengths": (6, 20), "targets_per_span": 3}
    config = TrainingConfig(output=tmp_path, max_chunks=4, **settings)
    cut = FileExamples(config, read, tokenizer(), limits)(0)
    assert [len(chunk) - 1 for chunk in cut.chunks] == [5, 5, 5, 5]
    with pytest.raises(ConfigError, match=r"makes 4 chunks of 8 tokens, but max_chunks=3"):
        FileExamples(replace(config, max_chunks=3), read, tokenizer(), limits)(0)
