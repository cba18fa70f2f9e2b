"""Questions about texts of the user's file, answered in words of one's own: FairytaleQA, SQuAD and XQuAD."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import ClassVar

from focus_core.errors import ConfigError
from focus_core.evaluation import scores
from focus_core.evaluation.tasks.base import Material, Question, Sheet, Span
from focus_core.evaluation.tasks.records import ARRANGEMENTS, SEPARATOR, Record


@dataclass(frozen=True)
class ReadingTask:
    """Questions drawn from records; answers are scored by the words that they share with the references.

    Attributes:
        arrange: how records become documents, unless the user says otherwise
        new_tokens: how many tokens an answer may take
    """

    name: str
    arrange: str
    new_tokens: int
    instruction: str = "Answer in a few words."
    scores: tuple[str, ...] = ("f1", "rouge_l", "exact", "contains")
    needs_data: ClassVar[bool] = True

    def sheets(self, material: Material) -> Iterator[Sheet]:
        """The drawn questions, those about the same documents together."""
        arrange, records = material.arrange or self.arrange, material.records
        if arrange not in ARRANGEMENTS:
            raise ConfigError(f"arrange={arrange!r}: choose from {', '.join(ARRANGEMENTS)}.")
        drawn = self._drawn(material)
        if arrange == "single":
            for number, of_record in groupby(drawn, key=lambda pair: pair[0]):
                record = records[number]
                questions = (self._question(record, index, 0, 0) for _, index in of_record)
                yield Sheet((record.text,), tuple(questions))
            return
        documents, places = _arranged(records, joined=arrange == "joined")
        yield Sheet(
            documents, tuple(self._question(records[number], index, *places[number]) for number, index in drawn)
        )

    def score(self, question: Question, text: str) -> dict[str, float]:
        return {
            "f1": scores.best(scores.f1, text, question.answers),
            "rouge_l": scores.best(scores.rouge_l, text, question.answers),
            "exact": scores.best(scores.exact, text, question.answers),
            "contains": scores.best(scores.contains, text, question.answers),
        }

    def _drawn(self, material: Material) -> list[tuple[int, int]]:
        """Indices of record and question, in the order of the file; more questions hold the same ones and others."""
        there = [(number, index) for number, one in enumerate(material.records) for index in range(len(one.questions))]
        if material.questions > len(there):
            raise ConfigError(f"questions={material.questions}: the data hold {len(there)}. Ask at most so many.")
        random.Random(f"{material.seed} {self.name}").shuffle(there)
        return sorted(there[: material.questions])

    def _question(self, record: Record, index: int, document: int, offset: int) -> Question:
        """Args:
        document: the one that holds the record's text
        offset: the text's first character there
        """
        asked = record.questions[index]
        spans = [record.section_characters(section) for section in asked.sections]
        gold = tuple(Span(document, offset + start, offset + stop) for start, stop in spans)
        return Question(f"{record.name}/{index}", asked.text, asked.answers, gold, new_tokens=self.new_tokens)


def _arranged(records: Sequence[Record], *, joined: bool) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """All records as documents, and of each record's text the document and the first character there."""
    texts = tuple(record.text for record in records)
    if not joined:
        return texts, [(number, 0) for number in range(len(texts))]
    starts = accumulate((len(text) + len(SEPARATOR) for text in texts), initial=0)
    return (SEPARATOR.join(texts),), [(0, start) for start, _ in zip(starts, texts, strict=False)]


FAIRYTALE = ReadingTask("fairytale", arrange="single", new_tokens=48)
"""FairytaleQA (Xu et al., ACL 2022): questions about whole stories, with references by two annotators."""

SQUAD = ReadingTask("squad", arrange="joined", new_tokens=32)
"""SQuAD (Rajpurkar et al., EMNLP 2016) and XQuAD (Artetxe et al., ACL 2020): answers are spans of one paragraph."""
