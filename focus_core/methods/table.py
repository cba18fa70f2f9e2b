"""The methods there are, and which one answers a question."""

from __future__ import annotations

from collections.abc import Callable

from focus_core.errors import ConfigError
from focus_core.methods.base import Method
from focus_core.methods.experts import ExpertsMethod
from focus_core.methods.focus import FocusModel
from focus_core.methods.focus_method import FocusMethod
from focus_core.methods.plain import PlainMethod
from focus_core.methods.select import SelectMethod

AUTO = "auto"
WITHOUT_ADAPTER = SelectMethod.name  # what "auto" takes for texts beyond the window if no adapter is loaded

# A new method is one file and one line here.
METHODS: dict[str, Callable[[FocusModel], Method]] = {
    FocusMethod.name: FocusMethod,
    PlainMethod.name: PlainMethod,
    SelectMethod.name: SelectMethod,
    ExpertsMethod.name: ExpertsMethod,
}


def checked_method(name: str) -> str:
    """`name`, if there is such a method.

    Raises:
        ConfigError: naming those there are
    """
    if name != AUTO and name not in METHODS:
        raise ConfigError(f"method={name!r}: choose from {', '.join(map(repr, (AUTO, *METHODS)))}.")
    return name
