"""The tasks there are."""

from __future__ import annotations

from focus_core.errors import ConfigError
from focus_core.evaluation.tasks.base import Task
from focus_core.evaluation.tasks.facts import facts_sheet, one_fact_sheet, reworded_sheet
from focus_core.evaluation.tasks.keys import keys_sheet
from focus_core.evaluation.tasks.look_up import LookUpTask
from focus_core.evaluation.tasks.passage import passage_sheet
from focus_core.evaluation.tasks.passkey import pass_key_sheet
from focus_core.evaluation.tasks.reading import FAIRYTALE, SQUAD

# A new task is one file and one line here.
LOOK_UPS: dict[str, Task] = {
    task.name: task
    for task in (
        LookUpTask("passkey", pass_key_sheet),
        LookUpTask("fact", one_fact_sheet),
        LookUpTask("facts", facts_sheet),
        LookUpTask("reworded", reworded_sheet),
        LookUpTask("keys", keys_sheet),
        LookUpTask("passage", passage_sheet),
    )
}
TASKS: dict[str, Task] = {**LOOK_UPS, FAIRYTALE.name: FAIRYTALE, SQUAD.name: SQUAD}


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        ConfigError: naming those there are
    """
    if name not in TASKS:
        raise ConfigError(f"There is no task {name!r}. Choose from: {', '.join(TASKS)}.")
    return TASKS[name]
