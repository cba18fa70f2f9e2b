"""The public-domain texts, divided into a part for training and a part that no training step sees."""

from __future__ import annotations

import random
import textwrap
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_FILES = ("alice.txt",)
HELD_OUT_TAILS = {"us_state_of_the_union.txt": 0.15}


@dataclass(frozen=True)
class Texts:
    """`train` is learned from; `held_out` is for measuring only."""

    train: list[str]
    held_out: list[str]


def read_texts(folder: Path) -> Texts:
    """Reads every `.txt` file of `folder` (stray bytes dropped, Windows line ends made plain)."""
    train, held_out = [], []
    for path in sorted(folder.glob("*.txt")):
        text = path.read_bytes().decode("utf-8", errors="ignore").replace("\r\n", "\n")
        if path.name in HELD_OUT_FILES:
            held_out.append(text)
            continue
        cut = round(len(text) * (1 - HELD_OUT_TAILS.get(path.name, 0.0)))
        train.append(text[:cut])
        if cut < len(text):
            held_out.append(text[cut:])
    if not train:
        raise SystemExit(f"no .txt files for training in {folder}")
    return Texts(train, held_out)


def reset(text: str, rng: random.Random) -> str:
    """The text as another printer would set it: in lines, and sometimes with speech, dashes, cries or shuffled words.

    Without it nothing but verse has line breaks in mid-sentence, and what is copied is never a surprise.
    """
    lines = text.split("\n")
    if rng.random() < 0.5:
        lines = [_lively(line, rng) for line in lines]
    width = rng.randint(50, 80)
    return "\n".join(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in lines)


def _lively(line: str, rng: random.Random) -> str:
    words = line.split(" ")
    if rng.random() < 0.15:
        rng.shuffle(words)
    changes = {0: "'{}", 1: "{}!'", 2: "{}?'", 3: "{}--", 4: "({})", 5: "_{}_", 6: '"{}', 7: '{},"'}
    for index, word in enumerate(words):
        draw = rng.randrange(200)
        words[index] = word.upper() if draw in (8, 9) else changes.get(draw, "{}").format(word)
    return " ".join(words).replace("-- ", "--")
