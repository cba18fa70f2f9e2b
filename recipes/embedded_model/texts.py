"""The public-domain texts, divided into a part for training and a part that no training step sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HELD_OUT_FILES = ("alice.txt",)
HELD_OUT_TAILS = {"us_state_of_the_union.txt": 0.15}


@dataclass(frozen=True)
class Texts:
    """``train`` is learned from; ``held_out`` is for measuring only."""

    train: list[str]
    held_out: list[str]


def read_texts(folder: Path) -> Texts:
    """Reads every ``.txt`` file of ``folder`` (stray bytes dropped, Windows line ends made plain)."""
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
