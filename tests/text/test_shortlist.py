"""The first pass over chunks: BM25 as its formula says, in every script."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_core.text.shortlist import shared_words, shortlist

TEXTS = [
    "The fox lives in Lisbon, and the owl does not.",
    "An owl has feathers. The owl's feathers are grey.",
    "Nothing happened here.",
    "",
]


def _slowly(question: str, texts: list[str]) -> list[float]:
    """The formula, word by word (Lucene's variant, k1 = 1.5, b = 0.75)."""
    split = [re.findall(r"\w+", text.lower()) for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for words in split:
        score = 0.0
        for word in set(re.findall(r"\w+", question.lower())):
            having = sum(word in other for other in split)
            idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            tf = words.count(word)
            score += idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(words) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("question", ["What has the OWL?", "Who lives in Lisbon?", "owl owl owl", "Where?", "?!"])
def test_scores_are_those_of_the_formula(question: str) -> None:
    assert shared_words(question, TEXTS) == pytest.approx(_slowly(question, TEXTS))


@given(st.lists(st.text("ab c", max_size=12), min_size=1, max_size=6).filter(any), st.text("abcd ", max_size=8))
def test_any_words(texts: list[str], question: str) -> None:
    if any(text.split() for text in texts):
        assert shared_words(question, texts) == pytest.approx(_slowly(question, texts))


def test_it_agrees_with_bm25s() -> None:
    """Another implementation orders them the same."""
    bm25s = pytest.importorskip("bm25s")
    model = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    model.index([re.findall(r"\w+", text.lower()) for text in TEXTS], show_progress=False)
    theirs = model.get_scores(["the", "owl", "feathers"]).tolist()
    ours = shared_words("the owl feathers", TEXTS)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_those_that_share_most_words_stay_in_their_order() -> None:
    assert shortlist(shared_words("Where does the owl with feathers live in Lisbon?", TEXTS), 2) == [0, 1]
    assert shortlist(shared_words("grey feathers", TEXTS), 1) == [1]
    assert shortlist(shared_words("grey feathers", TEXTS), 9) == [0, 1, 2, 3]


def test_words_that_none_has_leave_the_first() -> None:
    assert shortlist(shared_words("Zürich?", TEXTS), 2) == [0, 1]


@pytest.mark.parametrize(
    ("question", "texts"),
    [
        ("狐狸住在哪里？", ["今天下雨了。", "狐狸住在里斯本。"]),
        ("キツネはどこ？", ["雨が降った。", "キツネはリスボンにいる。"]),
        ("หมาจิ้งจอกอยู่ที่ไหน", ["ฝนตก", "หมาจิ้งจอกอยู่ในลิสบอน"]),
        ("Où est le RENARD ?", ["Il pleut.", "Le renard est à Lisbonne."]),
        ("Где лиса?", ["Идёт дождь.", "Лиса живёт в Лиссабоне."]),
    ],
)
def test_other_scripts(question: str, texts: list[str]) -> None:
    assert shortlist(shared_words(question, texts), 1) == [1]
