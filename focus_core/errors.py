"""What can go wrong for a user: every error says which value, why, and the way out."""

from __future__ import annotations

import sys
import warnings

_LONGEST_VALUE = 60  # characters of a value in a message


class FocusError(Exception):
    """Base of everything this package raises on purpose.

    Not a `ValueError`: frameworks above us swallow those and answer "Empty Response".
    """


class ConfigError(FocusError):
    """A setting has a value that cannot work."""


class ContextOverflowError(FocusError):
    """Something does not fit the model's window; nothing has been dropped and nothing has been computed."""


class OutOfMemoryError(FocusError):
    """The memory of the device does not hold the weights, the documents' keys and values, or what a pass needs."""


class UnsupportedModelError(FocusError):
    """The model cannot work with candidate tokens, or not in this setting."""


class AdapterError(FocusError):
    """An adapter is missing, damaged, or belongs to another model."""


class DocumentError(FocusError):
    """A document cannot be read as text, or holds none."""


class AnswerError(FocusError):
    """An answer is not what was asked for, such as JSON of a class; its text stands in the message."""


class FocusWarning(UserWarning):
    """Something works, but not as its user may expect."""


def warn(message: str) -> None:
    """A `FocusWarning` that points to the first line outside of this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("focus_"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, FocusWarning, stacklevel=level)


def first_line(error: Exception) -> str:
    """What another library says of its error, in one line; its kind where it says nothing.

    transformers' advice to let a model's own code run is not passed on.
    """
    if "trust_remote_code" in str(error):
        return (
            "it needs code that comes with it (auto_map), which is never run. Use one that transformers knows itself."
        )
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {more[0].strip()}" if first.endswith(":") and more else first


def shown(value: object) -> str:
    """A value of any size as a message shows it."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of very many digits"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def shown_bytes(nbytes: int) -> str:
    """A number of bytes with the unit that suits."""
    return f"{nbytes / 2**30:,.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:,.1f} MiB"
