"""Small data and trials for the tests of evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from focus_core.evaluation.tasks.base import Question, Sheet, Span
from focus_core.evaluation.trials import Trial

STORIES: list[dict[str, Any]] = [
    {
        "id": "fox",
        "sections": ["The fox lives in Lisbon.", "The owl has 48213 feathers.", "Nothing else happened."],
        "questions": [
            {"question": "Where does the fox live?", "answers": ["in Lisbon", "Lisbon"], "sections": [0]},
            {"question": "How many feathers has the owl?", "answers": ["48213"], "sections": [1]},
        ],
    },
    {
        "id": "crow",
        "sections": ["The crow is blue.", "The frog and the crow are friends."],
        "questions": [
            {"question": "What colour has the crow?", "answers": ["blue"], "sections": [0]},
            {"question": "Who are friends?", "answers": ["The frog and the crow"], "sections": [0, 1]},
        ],
    },
]


def write_stories(path: Path, stories: list[dict[str, Any]] | None = None) -> Path:
    """As JSON lines."""
    path.write_text("".join(json.dumps(story) + "\n" for story in stories or STORIES), encoding="utf-8")
    return path


def sheet_of(*documents: str, gold: tuple[Span, ...] = (), **question: Any) -> Sheet:
    """Documents and one question."""
    asked = {"name": "0", "text": "Which owl sings?", "answers": ("the grey owl",), "new_tokens": 4, **question}
    return Sheet(documents, (Question(gold=gold, **asked),))


def trial(contender: str, question: str, score: float | None, **more: Any) -> Trial:
    """An answer with this score, or one that could not be given."""
    values: dict[str, Any] = {"impossible": "too long"}
    if score is not None:
        usage = {"input_tokens": 9, "output_tokens": 2, "document_tokens": 5, "cache_read": 0, "chunks": 3}
        scores = {"right": score, "contains": 1.0}
        values = {"answer": "x", "method": "focus", "scores": scores, "seconds": 2.0, "usage": usage, "tokens_read": 5}
        values |= {"first_token_seconds": 1.0}
    values = {"asked_before": 0, "prompt": "?", "references": ("x",), **values, **more}
    return Trial("passkey", 1000, question, contender, **values)
