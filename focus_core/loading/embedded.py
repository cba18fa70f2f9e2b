"""Where the package keeps its own model, and the name it goes by."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parents[1] / "embedded"
EMBEDDED_BASE = EMBEDDED_FOLDER / "base"
EMBEDDED_ADAPTER = EMBEDDED_FOLDER / "adapter"
