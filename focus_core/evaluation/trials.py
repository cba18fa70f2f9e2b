"""What is kept of a run: its conditions, and one line per answer, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from focus_core import __version__
from focus_core.engine.engine import FocusEngine
from focus_core.errors import ConfigError, warn

Conditions = Mapping[str, Any]

DIFFERING = "differing"
# Conditions that make questions and scores others; all others may differ between contenders in one table.
_OF_THE_QUESTIONS = ("tasks", "lengths", "texts", "data", "arrange", "seed", "instruction", "max_new_tokens")
Key = tuple[str, int | None, str, str]


@dataclass(frozen=True)
class Trial:
    """One contender's answer to one question.

    Attributes:
        tokens: about how long made-up documents are; `None` for tasks with data
        question: its name in the task
        asked_before: questions that this contender was asked about the same documents in the same process
        prompt: the question with the task's instruction
        references: right answers
        answer: `None` where the contender could not answer
        impossible: why not
        method: the method that answered
        scores: as the task names them
        loss: of the first reference in place of the answer: its mean negative log-probability, nats a token
        tokens_read: of the documents, the tokens from which the answer was made
        gold_read: of the gold passages' characters, the share that was read; `None` where it is not known
        first_token_seconds: from the question to the first text, with choosing, tokenizing and reading documents
        seconds: to the end of the answer
        usage: fields of `engine.answers.Usage`
    """

    task: str
    tokens: int | None
    question: str
    contender: str
    asked_before: int
    prompt: str
    references: tuple[str, ...]
    answer: str | None = None
    impossible: str | None = None
    method: str | None = None
    scores: Mapping[str, float] | None = None
    loss: float | None = None
    tokens_read: int | None = None
    gold_read: float | None = None
    first_token_seconds: float | None = None
    seconds: float | None = None
    usage: Mapping[str, int] | None = None

    @property
    def key(self) -> Key:
        """What makes it another trial."""
        return self.task, self.tokens, self.question, self.contender


@dataclass
class Run:
    """Trials under the same conditions, in the order in which they were made.

    Attributes:
        path: where every trial is written at once; `None` keeps them in memory only
    """

    conditions: Conditions
    trials: list[Trial]
    path: Path | None = None

    def __post_init__(self) -> None:
        self._keys = {trial.key for trial in self.trials}

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    @property
    def contenders(self) -> list[str]:
        """Those that have answered."""
        return list(dict.fromkeys(trial.contender for trial in self.trials))

    def add(self, trial: Trial) -> None:
        """Keep a trial."""
        self.trials.append(trial)
        self._keys.add(trial.key)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(asdict(trial)))

    @classmethod
    def start(cls, conditions: Conditions, path: Path | None = None) -> Run:
        """A new run, or the one that `path` holds.

        Raises:
            ConfigError: the file holds something else, or a run under other conditions; says which differ
        """
        if path is None:
            return cls(conditions, [])
        if not path.exists() or path.stat().st_size == 0:
            path.write_text(_line({"conditions": conditions}), encoding="utf-8")
            return cls(conditions, [], path)
        run = cls.read(path)
        differing = differences(run.conditions, json.loads(json.dumps(conditions)))
        if differing:
            changed = "; ".join(f"{name}: {old!r} there, {new!r} now" for name, (old, new) in differing.items())
            raise ConfigError(f"{path} holds a run under other conditions. {changed}. Name another file.")
        _drop_half_line(path)
        return run

    @classmethod
    def read(cls, path: Path) -> Run:
        """The run that a file holds.

        Raises:
            ConfigError: it cannot be read, or is no run
        """
        try:
            head, *lines = _whole_lines(path)
            conditions = json.loads(head)["conditions"]
            trials = [_trial(json.loads(line)) for line in lines]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} holds no run of `focusllm eval`: {type(error).__name__} {error}.") from error
        return cls(conditions, trials, path)


def joined(runs: Mapping[str, Run]) -> dict[str, Run]:
    """By file name. Runs of the same questions by different contenders become one, so that all are compared with each
    other; runs of other questions, or in which a contender occurs twice, stay as they are.

    The conditions of the one run are those that all share, and under `DIFFERING` by file those that differ.
    """
    asked = [{name: run.conditions.get(name) for name in _OF_THE_QUESTIONS} for run in runs.values()]
    contenders = [name for run in runs.values() for name in run.contenders]
    if len(runs) < 2 or len(set(contenders)) < len(contenders) or any(one != asked[0] for one in asked):
        return dict(runs)
    flat = {file: _flat(run.conditions) for file, run in runs.items()}
    first, *others = flat.values()
    changed = {name for other in others for name in differences(first, other)}
    same = {name: value for name, value in first.items() if name not in changed}
    differing = {file: {name: value for name, value in one.items() if name in changed} for file, one in flat.items()}
    trials = [trial for run in runs.values() for trial in run.trials]
    return {", ".join(runs): Run({**same, DIFFERING: differing}, trials)}


def _flat(conditions: Conditions) -> dict[str, Any]:
    """`{"config": {"chunk_size": 256}}` as `{"config.chunk_size": 256}`."""
    found: dict[str, Any] = {}
    for name, value in conditions.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{part}": one for part, one in value.items()}
        else:
            found[name] = value
    return found


def differences(old: Conditions, new: Conditions) -> dict[str, tuple[Any, Any]]:
    """Conditions that are not equal, with both values; `None` where one lacks it."""
    names = dict.fromkeys([*old, *new])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def conditions_of(engine: FocusEngine) -> dict[str, Any]:
    """The engine and the machine, as JSON: all that an answer or its time may depend on."""
    loaded, device = engine.shared.loaded, engine.focus.device
    return {
        "model": loaded.model_id,
        "adapter": loaded.adapter_id,
        "dtype": str(engine.focus.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {
            "focusllm": __version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        "config": asdict(engine.config),
    }


def file_conditions(path: Path) -> dict[str, str]:
    """Name and SHA-256 of a data file."""
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> list[str]:
    """Without the half line that a killed process leaves."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].split("\n")[:-1]


def _drop_half_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        warn(f"{path} ends in the middle of a trial, which is made again.")
        with path.open("r+b") as file:
            file.truncate(whole)


def _trial(values: dict[str, Any]) -> Trial:
    known = {field.name for field in fields(Trial)}
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}")
    trial = Trial(**values)
    return replace(trial, references=tuple(trial.references))
