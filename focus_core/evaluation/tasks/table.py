"""The tasks there are."""

from __future__ import annotations

from focus_core.errors import ConfigError
from focus_core.evaluation.tasks.base import Task
from focus_core.evaluation.tasks.facts import facts_sheet, one_fact_sheet, reworded_sheet
from focus_core.evaluation.tasks.keys import keys_sheet
from focus_core.evaluation.tasks.passage import passage_sheet
from focus_core.evaluation.tasks.passkey import pass_key_sheet

# A new task is one file and one line here.
TASKS: dict[str, Task] = {
    "passkey": pass_key_sheet,
    "fact": one_fact_sheet,
    "facts": facts_sheet,
    "reworded": reworded_sheet,
    "keys": keys_sheet,
    "passage": passage_sheet,
}


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        ConfigError: naming those there are
    """
    if name not in TASKS:
        raise ConfigError(f"There is no task {name!r}. Choose from: {', '.join(TASKS)}.")
    return TASKS[name]
