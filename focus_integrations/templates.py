"""A document through a template, and which characters of the result are its own."""

from __future__ import annotations

from collections.abc import Callable

_MARK = "\x00document\x00"


def through_template(template: Callable[[str], str], text: str) -> tuple[str, tuple[int, int]]:
    """The text as the template makes it, and which of its characters are `text`: none, if it is changed or repeated.

    Args:
        template: a text put into its place
    """
    shown = template(text)
    before, *after = template(_MARK).split(_MARK)
    if len(after) == 1 and shown == before + text + after[0]:
        return shown, (len(before), len(before) + len(text))
    return shown, (0, 0)
