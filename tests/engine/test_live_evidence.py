"""What streams tell of their newest tokens: the shares of the passes that chose them, at the right chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from focus_core import ConfigError, Document, Finished, FocusEngine, FocusModel
from focus_core.attention import slot_attention
from focus_core.engine.answers import Event
from focus_core.methods.base import Decoding
from focus_core.methods.evidence import NOTHING, whole_chunk
from focus_core.methods.focus import FocusDecoding
from focus_core.methods.plain import PlainDecoding
from focus_core.methods.scored import ScoredDecoding
from tests.embedded import FACTS, book, needs_embedded, question_about
from tests.engines import QUESTION, A, B, make_engine

DOCUMENTS = [Document(A, name="a"), Document(B, name="b")]


def _stream(engine: FocusEngine, **options: Any) -> list[Event]:
    return list(engine.stream(QUESTION, DOCUMENTS, max_new_tokens=6, live_evidence=True, **options))


def _token_shares(events: Sequence[Event] | Iterator[Event]) -> list[tuple[float, ...]]:
    return [shares for event in events if event.evidence for shares in event.evidence.token_shares]


def _text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events)


@pytest.mark.parametrize("method", ["focus", "experts"])
def test_every_token_has_the_shares_of_the_pass_that_chose_it(method: str) -> None:
    engine = make_engine(method=method)
    events = _stream(engine)
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.plan is not None
    decoding = end.plan.method.decoding(engine._chunks_again(end.plan), [end.plan.question])
    decoding.start()
    wanted = list(decoding.shares())
    for token in end.tokens[:-1]:
        decoding.step(torch.tensor([token]))
        wanted += decoding.shares()
    assert len(_token_shares(events)) == len(end.tokens)
    for shares, of_pass in zip(_token_shares(events), wanted, strict=True):
        assert shares == pytest.approx(of_pass, abs=1e-5)
        assert len(shares) == len(end.plan.chunks)
        assert 0 < sum(shares) <= 1 + 1e-6


@pytest.mark.parametrize("tokens_per_pass", [1, 4096])
def test_an_answer_that_is_looked_at_again_has_the_same_shares(
    tokens_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(method="focus")
    events = _stream(engine)
    end = events[-1]
    assert isinstance(end, Finished)
    monkeypatch.setattr(FocusModel, "tokens_per_pass", tokens_per_pass)
    evidence = engine._evidence(end, engine._question_of(end), lambda: engine._chunks_again(engine._plan_of(end)))
    chunk = frozenset({whole_chunk(engine._question_of(end).chunks, 0)})
    evidence.log_probs([chunk])
    assert evidence.attended is None
    evidence.log_probs([chunk, NOTHING, chunk])
    assert evidence.attended is not None
    assert evidence.attended.numpy() == pytest.approx(np.array(_token_shares(events)), abs=1e-5)


def test_sources_of_a_model_that_cannot_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(method="focus", chunk_size=4, dynamic_prompt=8)
    answer = engine.generate(QUESTION, "".join(f"{number:03} " for number in range(40)), max_new_tokens=3)
    found = engine.explain(answer)
    monkeypatch.setattr(slot_attention, "_WATCHABLE", ())
    again = engine.explain(replace(answer))
    assert again.cost_of_chunks != found.cost_of_chunks  # groups are opened in another order
    assert again.groups
    assert (again.sources, again.support) == (found.sources, pytest.approx(found.support, abs=1e-4))


@pytest.mark.parametrize("method", ["plain", "select"])
def test_methods_without_slots_say_nothing(method: str) -> None:
    assert _token_shares(_stream(make_engine(method=method))) == []


@pytest.mark.parametrize("method", ["focus", "plain", "select", "experts"])
def test_the_answer_is_the_same(method: str) -> None:
    engine = make_engine(method=method)
    without = list(engine.stream(QUESTION, DOCUMENTS, max_new_tokens=6))
    assert _text(_stream(engine)) == _text(without)
    assert all(event.evidence is None for event in without)


def test_the_experts_winner_has_all() -> None:
    for shares in _token_shares(_stream(make_engine(method="experts"))):
        assert sorted(shares)[-2:] == [0.0, 1.0]


def test_a_pieces_best_chunk_stands_where_it_stands() -> None:
    events = _stream(make_engine(method="focus"))
    found = [event.evidence.best for event in events if event.evidence]
    assert found
    for event in events:
        if event.evidence is None:
            continue
        best, shares = event.evidence.best, event.evidence.shares
        assert best.share == max(shares) == shares[best.chunk]
        (document,) = best.documents
        assert best.name == DOCUMENTS[document].name
        # Chunks of 64 bytes, each document from its first one.
        assert best.start == 64 * (best.chunk - (3 if document else 0))


def test_a_shortlist_leaves_the_best_chunk_its_document() -> None:
    engine = make_engine(method="experts", shortlist=2, pack=False)
    documents = [*DOCUMENTS, Document("Which is it? Which? " * 8, name="questions")]
    events = engine.stream("Which?", documents, max_new_tokens=6, live_evidence=True)
    best = [event.evidence.best for event in events if event.evidence]
    assert {(one.documents, one.name) for one in best} == {((len(DOCUMENTS),), "questions")}


def test_a_text_that_is_held_back_comes_with_the_shares_of_all_its_tokens() -> None:
    engine = make_engine(method="focus")
    events = _stream(engine)
    text, shares = _text(events), _token_shares(events)
    held = list(engine.stream(QUESTION, DOCUMENTS, max_new_tokens=6, live_evidence=True, stop=[text + "!"]))
    assert [event.text for event in held] == [text]  # it could have become the stop string to the end
    assert isinstance(held[0], Finished)
    torch.testing.assert_close(torch.tensor(_token_shares(held)), torch.tensor(shares))
    mean = [sum(of_chunk) / len(shares) for of_chunk in zip(*shares, strict=True)]
    assert held[0].evidence is not None
    assert held[0].evidence.shares == pytest.approx(mean)


def test_every_question_of_a_batch_has_its_own() -> None:
    engine = make_engine(method="focus")
    questions = [QUESTION, "And why is the second so long?"]
    found: list[list[Event]] = [[], []]
    for index, event in engine.stream_batch(questions, DOCUMENTS, max_new_tokens=6, live_evidence=True):
        found[index].append(event)
    for question, events in zip(questions, found, strict=True):
        alone = list(engine.stream(question, DOCUMENTS, max_new_tokens=6, live_evidence=True))
        torch.testing.assert_close(torch.tensor(_token_shares(events)), torch.tensor(_token_shares(alone)))


def test_questions_without_the_option_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that joins one with the option has no evidence; alone, its decoding is not even asked."""
    engine = make_engine(method="focus")
    watched, unwatched = (
        engine.stream(QUESTION, DOCUMENTS, max_new_tokens=6, live_evidence=asked) for asked in (True, False)
    )
    first = [next(watched)]
    others = list(unwatched)
    assert _token_shares(others) == []
    assert len(_token_shares([*first, *watched])) == 6

    def refuse(self: Decoding) -> Any:
        raise AssertionError("computed without being asked for")

    for decoding in (FocusDecoding, PlainDecoding, ScoredDecoding):
        monkeypatch.setattr(decoding, "shares", refuse)
    assert _text(list(engine.stream(QUESTION, DOCUMENTS, max_new_tokens=6))) == _text(others)


def test_attention_that_cannot_be_watched_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention looks itself up by the name in the config, and failed the questions beside it too."""
    engine = make_engine(method="focus")
    monkeypatch.setattr(engine.focus.model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ConfigError, match=r"live_evidence=True .*'flash_attention_2'"):
        _stream(engine)
    assert engine.shared.scheduler.idle


def test_a_whole_answer_takes_no_live_evidence() -> None:
    with pytest.raises(ConfigError, match="live_evidence=True: generate"):
        make_engine().generate(QUESTION, DOCUMENTS, live_evidence=True)


@needs_embedded
def test_the_embedded_model_looks_at_the_chunk_of_the_fact() -> None:
    engine = FocusEngine.from_pretrained(progress=False, method="focus")
    document = Document(book(), name="book")
    events = list(engine.stream(question_about(FACTS[0]), document, max_new_tokens=24, live_evidence=True))
    found = [event.evidence.best for event in events if event.evidence]
    surest = max(found, key=lambda best: best.share)
    assert surest.start is not None
    assert surest.end is not None
    assert FACTS[0].value in document.text[surest.start : surest.end]
