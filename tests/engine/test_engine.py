"""The engine on a tiny random model: documents in any order and combination give what a cold run gives."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from focus_core import (
    ContextOverflowError,
    DocumentError,
    Finished,
    FocusConfig,
    FocusEngine,
    Piece,
    PreparedDocuments,
)
from focus_core.engine import engine as engine_module
from focus_core.engine import scheduler as scheduler_module
from focus_core.engine.options import CheckedOptions
from focus_core.engine.sampling import Sampler
from focus_core.text.documents import TokenizedDocument
from tests.engines import QUESTION, A, B, C, cold, make_engine
from tests.tiny import byte_tokenizer


@pytest.fixture
def engine() -> FocusEngine:
    return make_engine()


@pytest.mark.parametrize("documents", [[A], [A, B], [B, A], [C, B, A], [A, A], [B, C, B]])
def test_prepared_documents_answer_as_a_cold_run(engine: FocusEngine, documents: list[str]) -> None:
    """A wrong row, a stale prompt or a mixed-up order would change the answer."""
    prepared = {text: engine.prepare(text) for text in (A, B, C)}
    engine.generate("Something else?", [prepared[C], prepared[A]], max_new_tokens=3)
    answer = engine.generate(QUESTION, [prepared[text] for text in documents], max_new_tokens=8)
    assert answer.text == cold(QUESTION, documents)
    assert answer.usage.cache_creation == 0
    assert answer.usage.cache_read == answer.usage.document_tokens


def test_order_of_documents_matters(engine: FocusEngine) -> None:
    """Guards the test above: with this model another order is another answer."""
    assert cold(QUESTION, [A, B]) != cold(QUESTION, [B, A])


def test_stream_joined_is_the_answer_and_ends_with_usage(engine: FocusEngine) -> None:
    pieces = list(engine.stream(QUESTION, [A], max_new_tokens=8))
    assert "".join(piece.text for piece in pieces) == engine.generate(QUESTION, [A], max_new_tokens=8).text
    assert {type(piece) for piece in pieces[:-1]} == {Piece}
    end = pieces[-1]
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.method, end.usage.output_tokens, len(end.tokens)) == ("length", "focus", 8, 8)


def test_batch_equals_one_by_one_with_prompts_and_answers_of_any_length(engine: FocusEngine) -> None:
    questions = ["Why?", "A much longer question about the second of the documents?", "Where is the end"]
    stop = engine.generate(questions[0], [A, B], max_new_tokens=12).text[2:5]  # ends the first answer early
    batch = engine.generate(questions, [A, B], max_new_tokens=12, stop=stop)
    alone = [engine.generate(question, [A, B], max_new_tokens=12, stop=stop) for question in questions]
    assert [answer.text for answer in batch] == [answer.text for answer in alone]
    assert [answer.usage.output_tokens for answer in batch] == [answer.usage.output_tokens for answer in alone]
    assert len({answer.usage.output_tokens for answer in alone}) > 1, "all answers ended together"


def test_a_batch_reads_once_and_says_so(engine: FocusEngine) -> None:
    answers = engine.generate([QUESTION, "Why?", "Where?"], [A, B], max_new_tokens=2)
    assert [answer.usage.cache_creation for answer in answers] == [len(A) + len(B), 0, 0]
    assert {answer.usage.cache_read + answer.usage.cache_creation for answer in answers} == {len(A) + len(B)}


def test_batch_of_long_prompts_with_different_chunks(engine: FocusEngine) -> None:
    prompts = [A + B + "and so", C + A + B + "it ends"]
    batch = engine.generate(prompts, max_new_tokens=6, chat_template=False)
    assert [a.text for a in batch] == [engine.generate(p, max_new_tokens=6, chat_template=False).text for p in prompts]
    assert all(answer.usage.chunks > 1 for answer in batch)


def test_short_texts_are_read_by_the_plain_model() -> None:
    plain = make_engine(plain_up_to=400)
    answer = plain.generate(QUESTION, [C], max_new_tokens=8)
    ids = plain.tokenizer(f"user: {QUESTION}\nassistant:", add_special_tokens=False)["input_ids"]
    row = torch.tensor([[1, *plain.tokenizer(C, add_special_tokens=False)["input_ids"], 1, *ids]])
    expected = plain.focus.model.generate(row, max_new_tokens=8, do_sample=False)[0, row.shape[1] :]
    assert answer.usage.chunks == 0
    assert answer.text == plain.tokenizer.decode(expected, skip_special_tokens=True).lstrip()


def test_messages_and_system_prompt_go_through_the_chat_template(engine: FocusEngine) -> None:
    as_messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    by_option = engine.generate(QUESTION, [A], system="Be brief.", max_new_tokens=8)
    assert engine.generate(as_messages, [A], max_new_tokens=8).text == by_option.text
    assert by_option.usage.input_tokens > engine.generate(QUESTION, [A], max_new_tokens=8).usage.input_tokens


def test_end_of_sequence_ends_the_answer(engine: FocusEngine) -> None:
    usual = engine.generate(QUESTION, [A], max_new_tokens=8)
    first = next(iter(engine.stream(QUESTION, [A], max_new_tokens=1, chat_template=False)))
    ids = engine.tokenizer(first.text, add_special_tokens=False)["input_ids"]
    engine._end_tokens = frozenset(ids)
    answer = engine.generate(QUESTION, [A], max_new_tokens=8, chat_template=False)
    assert (answer.text, answer.finish_reason, answer.usage.output_tokens) == ("", "stop", 1)
    assert usual.finish_reason == "length"


def test_seed_repeats_an_answer_and_another_seed_does_not(engine: FocusEngine) -> None:
    def drawn(seed: int) -> str:
        return engine.generate(QUESTION, [A], max_new_tokens=20, temperature=1.5, seed=seed).text

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_tokenizer_without_bos_has_none_whatever_the_model_says() -> None:
    """Qwen2's config names a BOS that its tokenizer never writes, and that it was never trained with."""
    made = make_engine(plain_up_to=400)
    assert made.focus.model.config.bos_token_id == 1
    made.tokenizer.bos_token = None
    config = FocusConfig(chunk_size=64, dynamic_prompt=32, local_window=128)
    engine = FocusEngine.from_model(made.focus.model, made.tokenizer, config=config)
    assert engine.count_question_tokens(QUESTION, chat_template=False) == len(QUESTION)


def test_documents_beside_each_other_are_not_glued_together() -> None:
    """Read by the plain model, "…12" and "34…" would say 1234."""
    engine = make_engine(plain_up_to=400)
    answer = engine.generate(QUESTION, ["12", "34"], max_new_tokens=1, chat_template=False)
    assert answer.usage.chunks == 0
    assert (
        answer.text
        == make_engine(plain_up_to=400).generate(QUESTION, ["12\n\n34"], max_new_tokens=1, chat_template=False).text
    )
    (request,) = engine._requests([QUESTION], ["12", "34"], CheckedOptions.of({}, called="generate"), batch=False)
    assert "12\n\n34" in engine.tokenizer.decode(request.question.whole)


def test_what_the_plain_model_has_no_room_for_is_read_in_chunks() -> None:
    engine = make_engine(plain_up_to=511)
    answer = engine.generate(QUESTION, ["x" * 450], max_new_tokens=100)
    assert answer.usage.chunks == 8


@pytest.mark.parametrize("documents", [["text", "  \n "], [""], []])
def test_empty_documents_are_refused(engine: FocusEngine, documents: list[str]) -> None:
    with pytest.raises(DocumentError, match="empty"):
        engine.generate(QUESTION, documents)


def test_foreign_document_types_and_foreign_handles_are_refused(engine: FocusEngine) -> None:
    with pytest.raises(DocumentError, match="Document 2 of 2 is a int"):
        engine.generate(QUESTION, ["text", 3])  # type: ignore[list-item]
    with pytest.raises(DocumentError, match="documents is a PosixPath, not a text or a list of texts"):
        engine.generate(QUESTION, Path("a.txt"))  # type: ignore[arg-type]
    with pytest.raises(DocumentError, match=r"half of a character at place 5 \('.udce9'\)"):
        engine.generate(QUESTION, ["caf\u00e9 \udce9"])
    with pytest.raises(DocumentError, match="another"):
        engine.generate(QUESTION, PreparedDocuments((TokenizedDocument.of_tokens([5, 6]),), "another model"))


def test_what_does_not_fit_is_refused_before_any_work(engine: FocusEngine) -> None:
    read: list[int] = []
    with pytest.raises(ContextOverflowError, match=r"memory of \d+ chunks.*512 positions"):
        list(engine.stream(QUESTION, ["x" * 64 * 500], max_new_tokens=8, report=lambda done, _: read.append(done)))
    with pytest.raises(ContextOverflowError, match="max_new_tokens=500"):
        engine.generate(QUESTION, [A], max_new_tokens=500)
    assert read == []
    assert engine.shared.store.nbytes == 0


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ({"book.txt": "text"}, r"documents is a dict.*list\(documents.values\(\)\)"),
        (b"text", "documents is a bytes.*Decode it"),
        (io.StringIO("a\nb"), "documents is a StringIO.*read_file"),
    ],
)
def test_what_would_be_taken_to_pieces_is_refused(engine: FocusEngine, documents: Any, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        engine.generate(QUESTION, documents)
    with pytest.raises(DocumentError, match=message):
        engine.prepare(documents)


@pytest.fixture
def penalised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens of each question count for the repetition penalty."""
    seen: list[int] = []
    make = engine_module.Sampler

    def noting(config: Any, tokens: torch.Tensor) -> Any:
        seen.append(len(tokens))
        return make(config, tokens)

    monkeypatch.setattr(engine_module, "Sampler", noting)
    return seen


def test_the_repetition_penalty_counts_the_local_context(engine: FocusEngine, penalised: list[int]) -> None:
    """Of one long prompt, what is read in chunks does not count, as documents do not."""
    engine.generate(A, chat_template=False, max_new_tokens=1)
    engine.generate("Why?", [A], chat_template=False, max_new_tokens=1)
    assert penalised == [engine.config.local_window + 1, len("Why?") + 1]  # and a BOS


def test_the_repetition_penalty_never_counts_documents(penalised: list[int]) -> None:
    """Read by the plain model, they stand in the same row as the question."""
    answer = make_engine(plain_up_to=400).generate("Why?", [A], chat_template=False, max_new_tokens=1)
    assert answer.usage.chunks == 0
    assert penalised == [len("Why?") + 1]


def test_an_answer_ends_where_the_tokenizer_says(engine: FocusEngine) -> None:
    """Some models have no generation config."""
    model = engine.shared.loaded.model
    model.generation_config = None
    tokenizer = byte_tokenizer()
    assert FocusEngine.from_model(model, tokenizer)._end_tokens == {tokenizer.eos_token_id}


def test_tokens_of_a_document_are_counted_without_a_bos_that_is_not_there(engine: FocusEngine) -> None:
    """Under the authors' rule only the first chunk has one."""
    config = FocusConfig(chunk_size=64, dynamic_prompt=32, local_window=128, plain_up_to=0, bos_per_chunk=False)
    answer = FocusEngine(engine.shared, config=config).generate(QUESTION, [A], max_new_tokens=1)
    assert answer.usage.document_tokens == len(A)


def test_a_special_token_as_stop_string_ends_the_answer(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never becomes text, so that no search in the text would find it."""
    engine.tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    turn, tokens = engine.tokenizer.convert_tokens_to_ids("<turn>"), iter([70, 71, None, 72, 73])

    def choose(samplers: list[Sampler], logits: Tensor) -> list[int]:
        token = next(tokens)
        return [turn if token is None else token]

    monkeypatch.setattr(scheduler_module, "choose", choose)
    answer = engine.generate(QUESTION, [A], max_new_tokens=5, stop=["<turn>"])
    assert answer.text == engine.tokenizer.decode([70, 71])
    assert (answer.finish_reason, answer.usage.output_tokens) == ("stop", 3)


def test_without_a_template_an_answer_goes_on_where_the_question_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first space or line end would be lost, and a stop string there not be found."""
    engine = make_engine()
    engine.tokenizer.chat_template = None
    tokens = itertools.cycle(engine.tokenize(" \n a"))
    monkeypatch.setattr(scheduler_module, "choose", lambda samplers, logits: [next(tokens)])
    assert engine.generate(QUESTION, [A], max_new_tokens=4).text == " \n a"
    assert engine.generate(QUESTION, [A], max_new_tokens=4, stop="\n").text == " "
