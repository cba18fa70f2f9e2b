"""Texts with questions, from a file of JSON lines: how they are read, and how they become documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focus_core.errors import ConfigError

ARRANGEMENTS = ("single", "all", "joined")
"""How records become the documents of a question: its own record alone, all records as documents of their own, or all
of them as one document."""

SEPARATOR = "\n\n"  # between the sections of a text


@dataclass(frozen=True)
class RecordedQuestion:
    """A question about a record.

    Attributes:
        answers: one or more references
        sections: indices of the sections in which the answer stands
    """

    text: str
    answers: tuple[str, ...]
    sections: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """A text in sections, with questions about it."""

    name: str
    sections: tuple[str, ...]
    questions: tuple[RecordedQuestion, ...]

    @property
    def text(self) -> str:
        """All sections, as one document."""
        return SEPARATOR.join(self.sections)

    def section_characters(self, index: int) -> tuple[int, int]:
        """First character of a section in `text`, and the one after its last."""
        start = sum(len(section) + len(SEPARATOR) for section in self.sections[:index])
        return start, start + len(self.sections[index])


def read_records(path: Path) -> list[Record]:
    """The records of a file: a line each, `{"id": …, "sections": […], "questions": [{"question": …, "answers": […],
    "sections": […]}]}`; other fields are passed over, and so is `sections` of a question where it is missing.

    Raises:
        ConfigError: the file cannot be read, or a line is not such a record; with its number
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as data: {error}.") from error
    records = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                records.append(_record(json.loads(line)))
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(
                    f'{path}, line {number} is no record with "id", "sections" and "questions": '
                    f"{type(error).__name__} {error}."
                ) from error
    names = [record.name for record in records]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f'{path}: the "id" {twice!r} stands in two lines. Each record needs its own.')
    if not any(record.questions for record in records):
        raise ConfigError(f"{path} holds no questions.")
    return records


def _record(line: Mapping[str, Any]) -> Record:
    sections = _texts(line["sections"])
    questions = tuple(_question(one, len(sections)) for one in line["questions"])
    return Record(str(line["id"]), sections, questions)


def _question(line: Mapping[str, Any], sections: int) -> RecordedQuestion:
    gold = tuple(int(index) for index in line.get("sections", ()))
    if any(not 0 <= index < sections for index in gold):
        raise ValueError(f"section {max(gold)} of {sections}, counted from 0")
    (text,) = _texts([line["question"]])
    return RecordedQuestion(text, _texts(line["answers"]), gold)


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not values or any(not isinstance(one, str) or not one.strip() for one in values):
        raise ValueError(f"{values!r} is not a list of texts")
    return tuple(values)
