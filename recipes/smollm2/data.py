"""FairytaleQA as training records: every section of a story a document, and every question with its gold sections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_records(stories: Path, path: Path) -> int:
    """Write the questions of `stories` that mark their sections, one record for each story; returns how many.

    Args:
        stories: JSON lines with `sections` and `questions`, each of these with `answers` and the numbers of its
            `sections`
    """
    records = [_record(json.loads(line)) for line in stories.read_text(encoding="utf-8").splitlines()]
    kept = [record for record in records if record["questions"]]
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept), encoding="utf-8")
    return sum(len(record["questions"]) for record in kept)


def _record(story: dict[str, Any]) -> dict[str, Any]:
    questions = [
        {"question": asked["question"], "answer": asked["answers"][0], "gold": sorted(set(asked["sections"]))}
        for asked in story["questions"]
        if asked["sections"]
    ]
    return {"documents": story["sections"], "questions": questions}
