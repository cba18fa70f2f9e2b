"""JSON and TOML from anybody: whatever is wrong with them is a `ValueError`, at once."""

from __future__ import annotations

import json
import tomllib
from typing import Any

_LONGEST_TOML = 64_000  # characters of settings; the time to read a key grows with the square of its parts


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, is nested too deeply, or holds a number of too many digits
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_toml(text: str) -> dict[str, Any]:
    """The settings of a TOML text.

    Raises:
        ValueError: it is none, is nested too deeply or too long, or holds a number of too many digits
    """
    if len(text) > _LONGEST_TOML:
        raise ValueError(f"it has {len(text):,} characters; settings have {_LONGEST_TOML:,} at most")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
