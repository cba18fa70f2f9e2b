"""What the benchmark of sources counts: right sources as right, and wrong ones as wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import sources_reading
from benchmarks.live_evidence import Token, agreement, attended, seconds, spearman, stream
from benchmarks.source_rivals import contextcite, lasso, loss
from benchmarks.sources import CONDITIONS, Item, Outcome, make_item, measure, outcome, stating, summary
from focus_core import FocusEngine
from focus_core.engine.sources import ChunkLoss, Explanation, Role, Source
from focus_core.evaluation.retrieval import BM25
from focus_core.evaluation.tasks.records import Record, RecordedQuestion
from focus_core.methods.evidence import LeftOut, whole_chunks
from focus_core.methods.focus_evidence import FocusEvidence
from tests.embedded import FACTS, needs_embedded, question_about
from tests.engines import A, B, C, make_engine

TEXT = "x" * 40 + "The key is 7. " + "y" * 40 + "It is 7." + "z" * 40
SPANS = ((40, 53), (94, 102))
ITEM = Item(TEXT, "Which key?", ("7",), SPANS[:1])


def _source(start: int, end: int, role: Role = "sole", score: float = 9.0) -> Source:
    return Source(0, None, start, end, TEXT[start:end], score, role, start // 71)


def _found(*sources: Source, losses: tuple[float, float] = (9.0, 0.0)) -> Explanation:
    chunks = (ChunkLoss((0,), 0, 71, losses[0], losses[:1]), ChunkLoss((0,), 71, 142, losses[1], losses[1:]))
    return Explanation(sources=sources, supported=True, support=9.0, chunks=chunks)


def test_the_right_sentence_is_right() -> None:
    counted = outcome("one", ITEM, "The key is 7.", _found(_source(*SPANS[0])))
    assert [counted[name] for name in ("right", "chunk", "sentence", "all", "named")] == [True] * 5


def test_a_source_that_names_all_of_the_text_names_no_sentence() -> None:
    counted = outcome("one", ITEM, "The key is 7.", _found(_source(0, len(TEXT))))
    assert [counted[name] for name in ("chunk", "sentence", "all")] == [True, False, False]


def test_a_scorer_with_its_chunks_shuffled_fails() -> None:
    counted = outcome("one", ITEM, "The key is 7.", _found(_source(*SPANS[1]), losses=(0.0, 9.0)))
    assert [counted[name] for name in ("right", "chunk", "sentence", "all")] == [True, False, False, False]


@needs_embedded
@pytest.mark.slow
def test_with_the_chunks_shuffled_the_benchmark_misses_its_aims(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers, explained by a scorer that hides the slot of the chunk behind the one it was asked about."""
    engine = FocusEngine.from_pretrained(chunk_size=256, progress=False)
    items = [make_item(engine, "one", 800, number, 1) for number in range(2)]

    def rates() -> dict[str, float]:
        found: dict[str, float] = summary("one", [measure(engine, "one", item, "focus") for item in items])["rates"]
        return found

    assert (rates()["chunk"], rates()["sentence"]) == (1.0, 1.0)
    log_probs = FocusEvidence.log_probs

    def of_the_next(self: FocusEvidence, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Tensor:
        whole = whole_chunks(self._question.chunks)
        following = dict(zip(whole, [*whole[1:], whole[0]], strict=True))
        return log_probs(self, [frozenset(following.get(unit, unit) for unit in one) for one in left_out], tokens)

    monkeypatch.setattr(FocusEvidence, "log_probs", of_the_next)
    assert rates()["chunk"] < 0.5
    assert rates()["sentence"] < 0.5


@pytest.mark.parametrize(("role", "named"), [("redundant", True), ("sole", False)])
def test_two_that_say_the_same_are_to_be_called_redundant(role: Role, named: bool) -> None:
    item = replace(ITEM, gold=SPANS)
    counted = outcome("same", item, "It is 7.", _found(*(_source(*span, role) for span in SPANS)))
    assert (counted["all"], counted["named"]) == (True, named)


def test_a_wrong_answer_has_no_right_source() -> None:
    counted = outcome("one", ITEM, "The key is 71.", _found(_source(*SPANS[0])))
    assert [counted[name] for name in ("right", "chunk", "sentence")] == [False] * 3


def test_rates_are_of_right_answers() -> None:
    costs: dict[str, Any] = {
        "seconds": 1.0,
        "answer_seconds": 1.0,
        "tokens": 10,
        "answer_tokens": 2,
        "chunk_tokens": 8,
        "steps": 2.0,
    }
    right = Outcome(True, True, True, True, True, True, 9.0, 0.99, **costs)
    wrong = replace(right, right=False, chunk=False, sentence=False, supported=False)
    assert summary("one", [right, wrong])["rates"]["sentence"] == 1.0
    assert summary("none", [right, wrong])["rates"] == {"supported": 0.5}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_an_item_holds_what_it_says(condition: str) -> None:
    item = CONDITIONS[condition](random.Random(1), ["Nothing happened."] * 50)
    assert len(item.gold) == {"one": 1, "both": 2, "same": 2, "contradict": 2}.get(condition, 0)
    for answer in item.answers:
        assert any(answer in item.text[slice(*span)] for span in item.gold)


def test_a_sparse_linear_model() -> None:
    """Without a penalty it is least squares; of orthogonal inputs the weights shrink by penalty / variance."""
    draw = np.random.default_rng(0)
    inputs, noise = draw.normal(size=(40, 3)), draw.normal(size=40)
    centred = np.c_[inputs, np.ones(40)]
    outputs = inputs @ [2.0, -1.0, 0.0] + 5 + 0.1 * noise
    wanted = np.linalg.lstsq(centred, outputs, rcond=None)[0][:3]
    assert lasso(inputs, outputs, 0.0) == pytest.approx(wanted, abs=1e-6)
    halves = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], dtype=float)
    found = lasso(halves, halves @ [2.0, -1.0, 0.05], 0.1)
    assert found == pytest.approx([2.0 - 0.4, -1.0 + 0.4, 0.0])


def test_contextcite_takes_the_chunks_that_the_answer_needs() -> None:
    """On a model of random weights it agrees with the exact losses about most of the difference."""
    engine = make_engine(method="focus")
    question = Item(" ".join([A, B, C] * 3), "Which?", ("?",), ())
    answer = engine.generate(question.question, question.text, max_new_tokens=5)
    (weights, spent), (losses, exact) = (guess(engine, question, answer) for guess in (contextcite, loss))
    assert len(weights) == len(losses) > 8
    assert spent > 2 * exact
    assert np.corrcoef(weights, losses)[0, 1] > 0.3
    assert np.corrcoef(weights[::-1], losses)[0, 1] < 0.3


def test_the_statements_that_say_what_was_answered() -> None:
    item = replace(ITEM, gold=SPANS, answers=("7", "8"))
    assert stating(item, "It is 7.") == list(SPANS)
    assert stating(item, "It is 8.") == []


def test_agreement_is_of_the_tokens_that_owe_something() -> None:
    tokens = [
        Token([2.0, 0.1, 0.0], {"live": [0.5, 0.3, 0.1], "later": [0.1, 0.3, 0.5]}),
        Token([0.0, 0.1, 3.0], {"live": [0.5, 0.3, 0.1], "later": [0.1, 0.3, 0.5]}),
        Token([0.2, 0.1, 0.0], {"live": [0.1, 0.2, 0.2], "later": [0.1, 0.2, 0.2]}),  # owes nothing that counts
    ]
    found = agreement(tokens, 1.0)
    assert (found["tokens"], found["owing"]) == (3, 2)
    assert found["signals"]["live"] == {"first": 1, "rank": pytest.approx(0.0)}
    assert (found["highest share, owing"], found["highest share, others"]) == (0.5, 0.2)


def test_rank_correlation_by_hand() -> None:
    """1 − 6 Σd² / (n (n² − 1)) without ties; equal numbers share their ranks."""
    assert spearman([1, 2, 3, 4], [10, 40, 20, 30]) == pytest.approx(1 - 6 * (0 + 4 + 1 + 1) / (4 * 15))
    assert spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1.0)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_the_rivals_of_live_evidence_come_from_the_same_pass() -> None:
    """Attention that is computed again, with its values, is what the stream had."""
    engine = make_engine(method="focus")
    end, _, shares = stream(engine, Item(" ".join([A, B, C]), "Which?", ("?",), ()))
    assert end.plan is not None
    chunks, question = engine._chunks_again(end.plan), end.plan.question.asked
    memory = engine.focus.decode_candidates(chunks, torch.tensor([question.dynamic_prompt]))
    seen = attended(engine.focus, memory, question.local_context, end.tokens[0])
    assert seen.weights.mean((0, 1)).tolist() == pytest.approx(shares[0], abs=1e-5)
    assert seen.outputs.shape == (3, 4, len(shares[0]), 32)
    assert seen.values.shape == (3, 4, len(shares[0]), 8)


def test_seconds_are_of_the_same_answers_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round reads the text and is not counted; with and without come first by turns."""
    engine, asked, usual = make_engine(method="focus"), list[bool](), FocusEngine.stream

    def noted(*given: Any, live_evidence: bool, **options: Any) -> Any:
        asked.append(live_evidence)
        return usual(*given, live_evidence=live_evidence, **options)

    monkeypatch.setattr(FocusEngine, "stream", noted)
    found = seconds(engine, [Item(" ".join([A, B, C]), "Which?", ("?",), ())], 2, 4)
    assert asked == [False, True, True, False, False, True]
    assert (found["answers"], found["tokens"]) == (2, 4)
    assert all(found[name][of] > 0 for name in ("with", "without") for of in ("first", "token"))
    assert found["ratios"][0] <= found["ratio"] <= found["ratios"][1]


# --- stories ----------------------------------------------------------------------------------------------------------


@needs_embedded
def test_a_question_is_asked_with_its_section_and_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_reading, "INSTRUCTION", "")
    engine = FocusEngine.from_pretrained(method="focus", pack=False, progress=False)
    sections = tuple(f"The {fact.attribute} of {fact.entity} is {fact.value}." for fact in FACTS[:3])
    asked = RecordedQuestion(question_about(FACTS[1]), (FACTS[1].value,), (1,))
    found = sources_reading.measure(
        engine, {"bm25": BM25()}, Record("facts", sections, (asked,)), asked, 24, ablated=True
    )
    assert found["first"] == {"loss": True, "attention": True, "contextcite": True, "bm25": True}
    assert (found["right"], found["sections"], found["chance"]) == (True, 3, pytest.approx(1 / 3))
    assert found["with"]["supported"]
    assert len(found["with"]["losses"]) == 3
    assert len(found["without"]["losses"]) == 2
    assert FACTS[1].value not in found["answer_without"]
    wrong = RecordedQuestion(asked.text, asked.answers, (0,))
    shuffled = sources_reading.measure(engine, {"bm25": BM25()}, Record("facts", sections, (wrong,)), wrong, 24)
    assert shuffled["first"] == {"loss": False, "attention": False, "bm25": False}
    lines = sources_reading.summary([found, shuffled])
    assert lines[0].startswith(
        "all     2 answers; section first: loss 1, attention 1, contextcite 1 of 1, bm25 1 (chance 0.7)"
    )
    assert lines[1].startswith("right   2 answers")


def test_questions_are_drawn_from_stories_that_have_other_sections() -> None:
    def record(name: str, sections: int, *gold: tuple[int, ...]) -> Record:
        asked = tuple(RecordedQuestion(f"{name}{number}", ("x",), of) for number, of in enumerate(gold))
        return Record(name, tuple("ab"[:sections]), asked)

    records = [record("a", 2, (0,), (0, 1), ()), record("b", 1, (0,)), record("c", 2, (1,), (0,))]
    drawn = sources_reading.drawn(records, 3, seed=0)
    assert [question.text for _, question in drawn] in (["a0", "c0", "c1"], ["a0", "c1", "c0"])


@pytest.mark.parametrize(("gold", "kept", "now"), [((3,), "cde", (1,)), ((0,), "abc", (0,)), ((1, 4), "abe", (1, 2))])
def test_a_story_is_cut_to_the_sections_around_the_answer(
    gold: tuple[int, ...], kept: str, now: tuple[int, ...]
) -> None:
    asked = RecordedQuestion("?", ("x",), gold)
    record, question = sources_reading.shortened(Record("a", tuple("abcde"), (asked,)), asked, 3)
    assert record.sections == tuple(kept)
    assert question.sections == now
