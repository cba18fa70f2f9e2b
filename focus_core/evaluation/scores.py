"""How near an answer is to a reference, from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

Score = Callable[[str, str], float]  # answer, reference

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[a-z0-9]+")


def best(score: Score, answer: str, references: Sequence[str]) -> float:
    """The score against the reference that suits the answer best."""
    return max(score(answer, reference) for reference in references)


def exact(answer: str, reference: str) -> float:
    """Exact match of SQuAD (Rajpurkar et al., 2016): the same after `normalised`."""
    return float(normalised(answer) == normalised(reference))


def contains(answer: str, reference: str) -> float:
    """Whether the reference's words stand in the answer, whole and in order, after `normalised`."""
    return float(f" {normalised(reference)} " in f" {normalised(answer)} ")


def f1(answer: str, reference: str) -> float:
    """F1 of SQuAD: harmonic mean of precision and recall of words, after `normalised`."""
    said, wanted = normalised(answer).split(), normalised(reference).split()
    if not said or not wanted:
        return float(said == wanted)
    return _harmonic((Counter(said) & Counter(wanted)).total(), len(said), len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L (Lin, 2004) as F1, without stemming: the longest common subsequence of lower-case words."""
    said, wanted = (_WORD.findall(text.lower()) for text in (answer, reference))
    if not said or not wanted:
        return float(said == wanted)
    return _harmonic(_common_subsequence(said, wanted), len(said), len(wanted))


def normalised(text: str) -> str:
    """Lower case, without punctuation and English articles, words a space apart: as SQuAD compares answers."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _harmonic(common: int, said: int, wanted: int) -> float:
    """F1 from counts: 2 · P · R / (P + R) with P = common / said and R = common / wanted."""
    return 2 * common / (said + wanted)


def _common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest one."""
    row = [0] * (len(right) + 1)
    for word in left:
        previous = row
        row = [0]
        for index, other in enumerate(right):
            row.append(previous[index] + 1 if word == other else max(previous[index + 1], row[index]))
    return row[-1]
