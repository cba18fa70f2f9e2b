"""Whether made-up documents of a length can be asked about at all: known before any are made."""

from __future__ import annotations

from collections.abc import Sequence

from focus_core.device import require_memory
from focus_core.engine.engine import FocusEngine
from focus_core.errors import ConfigError, ContextOverflowError, OutOfMemoryError
from focus_core.methods.table import AUTO, METHODS

_LONGEST = 10_000_000  # tokens, which take a minute to make up


def require_readable(engine: FocusEngine, tokens: int, contenders: Sequence[str]) -> None:
    """Refuse a length at which every contender would fail. Rivals that read a part of a document can read any.

    Args:
        tokens: of one document

    Raises:
        ConfigError: more tokens than can be made up
        ContextOverflowError: no contender has positions for an answer
        OutOfMemoryError: the device does not hold the keys and values
    """
    if tokens > _LONGEST:
        raise ConfigError(f"tokens={tokens:,}: documents of no more than {_LONGEST:,} tokens are made up.")
    failures: list[ContextOverflowError | OutOfMemoryError] = []
    for name in contenders:
        if name not in (AUTO, *METHODS):
            return
        try:
            _check(engine, tokens, name)
            return
        except (ContextOverflowError, OutOfMemoryError) as error:
            failures.append(error)
    raise failures[0]


def _check(engine: FocusEngine, tokens: int, method: str) -> None:
    outline = engine.outline([tokens], method=method)
    outline.limits.check(1)
    nbytes = outline.method.chunk_bytes(outline.chunks, outline.limits.chunk_tokens)
    require_memory(nbytes, engine.focus.device, what=f"{tokens:,} tokens")
