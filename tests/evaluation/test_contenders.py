"""What each contender hands to the engine, to the character."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from focus_core import ConfigError, FocusEngine
from focus_core.evaluation.contenders import (
    RIVALS,
    Cut,
    Gold,
    Handed,
    Retrieval,
    Setting,
    checked_contenders,
    contenders_named,
)
from focus_core.evaluation.retrieval import Index, Scores
from focus_core.evaluation.tasks.base import Sheet, Span
from focus_core.methods.table import METHODS
from tests.engines import make_engine
from tests.evaluation.cases import sheet_of

TWO = ("0123456789", "abcdefghij")  # joined: 22 letters, each a token


@pytest.fixture(scope="module")
def engine() -> FocusEngine:
    return make_engine()


def handed(name: str, sheet: Sheet, setting: Setting) -> Handed:
    (contender,) = contenders_named([name], setting)
    return contender.hand(sheet, sheet.questions[0], sheet.questions[0].text)


@pytest.mark.parametrize("name", ["auto", *METHODS])
def test_every_method_of_the_engine_is_a_contender_with_all_documents(engine: FocusEngine, name: str) -> None:
    found = handed(name, sheet_of(*TWO), Setting(engine, budget=4))
    assert found == Handed(list(TWO), name, (Span(0, 0, 10), Span(1, 0, 10)))


def test_the_middle_is_cut_as_longbench_does(engine: FocusEngine) -> None:
    """Half of the budget from the beginning, half from the end."""
    found = handed("middle", sheet_of(*TWO), Setting(engine, budget=8))
    assert found == Handed(["0123ghij"], "plain", (Span(0, 0, 4), Span(1, 6, 10)))
    found = handed("middle", sheet_of(*TWO), Setting(engine, budget=26))
    assert found.documents == ["0123456789\n\nabcdefghij"]


def test_the_end_is_the_end(engine: FocusEngine) -> None:
    found = handed("end", sheet_of(*TWO), Setting(engine, budget=13))
    assert found == Handed(["9\n\nabcdefghij"], "plain", (Span(0, 9, 10), Span(1, 0, 10)))


def test_gold_and_none(engine: FocusEngine) -> None:
    gold = (Span(1, 2, 4), Span(0, 0, 3))
    assert handed("gold", sheet_of(*TWO, gold=gold), Setting(engine)) == Handed(
        ["012", "cd"], "plain", (Span(0, 0, 3), Span(1, 2, 4))
    )
    assert handed("none", sheet_of(*TWO), Setting(engine)) == Handed(None, "plain", ())
    with pytest.raises(ConfigError, match="names no gold passage"):
        Gold().hand(sheet_of(*TWO), sheet_of(*TWO).questions[0], "?")


def test_another_text_is_a_control(engine: FocusEngine) -> None:
    """What is scored without the right text is no reading."""
    texts = ["The fox is red. " * 12, "The owl is grey. " * 12]
    for number, text in enumerate(texts):
        sheet = sheet_of(text, gold=(Span(0, 0, 8),))
        found = handed("other", sheet, Setting(engine, texts=texts))
        assert found == Handed([texts[1 - number]], "auto", ())
        answer = engine.generate("?", found.documents, method="select", max_new_tokens=1)
        assert found.gold_read(sheet.questions[0], answer) == 0.0
    for documents, of_data in ((texts, texts), (texts[:1], texts[:1]), (["?"], texts)):
        with pytest.raises(ConfigError, match="other needs several texts"):
            handed("other", sheet_of(*documents), Setting(engine, texts=of_data))


class Longest:
    """Ranks passages by a letter; counts how often it reads them."""

    def __init__(self) -> None:
        self.read = 0

    def index(self, passages: list[str]) -> Index:
        self.read += 1
        return _ByLetter(passages)


class _ByLetter:
    def __init__(self, passages: list[str]) -> None:
        self._passages = passages

    def scores(self, question: str) -> Scores:
        return np.array([passage.count(question) for passage in self._passages], dtype=np.float32)


def test_retrieval_fills_the_budget_and_hands_over_in_document_order(engine: FocusEngine) -> None:
    sheet = sheet_of("aab\n\nxx\n\nbbb.", "ccc\n\nabbbb\n\nbb", text="b")
    ranker = Longest()
    contender = Retrieval("letters", Setting(engine, budget=14, passage_tokens=7), ranker)  # type: ignore[arg-type]
    found = contender.hand(sheet, sheet.questions[0], "unused")
    # Passages: "aab\n\n", "xx\n\n", "bbb.", "ccc\n\n", "abbbb\n\n", "bb", neighbours up to 7 tokens together.
    assert found.documents == ["bbb.", "abbbb\n\nbb"]
    assert [sheet.text(span) for span in found.spans] == ["bbb.", "abbbb\n\nbb"]
    contender.hand(sheet, sheet.questions[0], "unused")
    assert ranker.read == 1  # once for all questions about the same documents


def test_a_budget_that_holds_no_passage_is_refused(engine: FocusEngine) -> None:
    sheet = sheet_of("aaaaaaa", text="b")
    contender = Retrieval("letters", Setting(engine, budget=3, passage_tokens=7), Longest())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="No passage fits a budget of 3 tokens: the shortest has 7"):
        contender.hand(sheet, sheet.questions[0], "b")


@pytest.mark.parametrize("name", ["middle", "end", "bm25"])
def test_without_a_budget_the_window_is_filled_and_not_exceeded(engine: FocusEngine, name: str) -> None:
    if name == "bm25":
        pytest.importorskip("bm25s")
    sheet = sheet_of("The grey owl sings. " * 20, "A fox.\n\n" * 40, new_tokens=16)
    found = handed(name, sheet, Setting(engine, passage_tokens=16))
    answer = engine.generate("Which owl sings?", found.documents, method="plain", max_new_tokens=16)
    assert engine.config.window - 100 < answer.usage.input_tokens + 16 <= engine.config.window


def test_a_question_that_fills_the_window_leaves_no_budget(engine: FocusEngine) -> None:
    sheet = sheet_of(*TWO, text="x" * 600)
    with pytest.raises(ConfigError, match="it leaves none for documents"):
        Cut("end", Setting(engine), first=0.0).hand(sheet, sheet.questions[0], sheet.questions[0].text)


def test_what_was_read_of_the_gold(engine: FocusEngine) -> None:
    sheet = sheet_of(*TWO, gold=(Span(0, 0, 8),))
    answer = engine.generate("?", list(TWO), method="plain", max_new_tokens=1)
    assert handed("end", sheet, Setting(engine, budget=18)).gold_read(sheet.questions[0], answer) == 0.5
    assert handed("none", sheet, Setting(engine)).gold_read(sheet.questions[0], answer) == 0.0
    assert handed("plain", sheet, Setting(engine)).gold_read(sheet_of(*TWO).questions[0], answer) is None


@pytest.mark.parametrize("pack", [False, True])
def test_of_a_method_that_chooses_chunks_the_chosen_ones_were_read(pack: bool) -> None:
    engine = make_engine(select_tokens=80, pack=pack)
    documents = ["The fox. " * 12, "An owl. ", "A crow. ", "Two frogs. " * 12]
    sheet = sheet_of(*documents, gold=tuple(Span(number, 0, len(text)) for number, text in enumerate(documents)))
    answer = engine.generate("Which?", documents, method="select", max_new_tokens=2)
    chosen = [part for score in answer.chunk_scores if score.read for part in score.chunk.document_parts]
    characters = sum(len(part.text or "") for part in chosen)
    found = handed("select", sheet, Setting(engine))
    assert 0 < characters < len("".join(documents))
    assert found.gold_read(sheet.questions[0], answer) == pytest.approx(characters / len("".join(documents)))
    assert characters <= found.tokens_read(answer) <= 80  # every letter is a token; packed documents have separators


def test_unknown_contenders_and_missing_encoders_are_named() -> None:
    with pytest.raises(ConfigError, match=r"no contender 'bm52'. Choose from: auto, focus, plain"):
        checked_contenders(["auto", "bm52"])
    with pytest.raises(ConfigError, match="--embedder FOLDER"):
        RIVALS["minilm"](Setting(make_engine(), embedder=None))
    with pytest.raises(ConfigError, match="holds no sentence encoder"):
        RIVALS["minilm"](Setting(make_engine(), embedder=Path("nowhere")))
