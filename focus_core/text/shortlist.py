"""How many words texts share with a question, by BM25 (Robertson and Walker, 1994), and the texts that share most.

It costs milliseconds where a model needs minutes: a first pass over many texts, and evidence beside the model's own.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_K1, _B = 1.5, 0.75  # how soon a repeated word counts no more, and how much long texts are held back: the usual values
# In scripts that put no spaces between words each character counts as one.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def shortlist(scores: Sequence[float], size: int) -> list[int]:
    """Indices of the `size` highest scores, in order; of equal ones the first."""
    return sorted(sorted(range(len(scores)), key=lambda index: -scores[index])[:size])


def shared_words(question: str, texts: Sequence[str]) -> list[float]:
    """BM25 of each text: more for words that few of the texts have, in the variant of Lucene."""
    counts = [Counter(_words(text)) for text in texts]
    lengths = [count.total() for count in counts]
    usual = sum(lengths) / len(texts) or 1.0
    norms = [_K1 * (1 - _B + _B * length / usual) for length in lengths]
    scores = [0.0] * len(texts)
    for word in dict.fromkeys(_words(question)):
        having = [index for index, count in enumerate(counts) if word in count]
        rarity = math.log(1 + (len(texts) - len(having) + 0.5) / (len(having) + 0.5))
        for index in having:
            found = counts[index][word]
            scores[index] += rarity * found / (found + norms[index])
    return scores


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
