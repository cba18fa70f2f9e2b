"""What can be asked for in one call: one list for the engine, the command line and the wrappers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict

from focus_core.config import FocusConfig, SamplingConfig
from focus_core.disk import store_folder
from focus_core.errors import ConfigError, shown
from focus_core.progress import OnReading, Report

STORE_VARIABLE = "FOCUSLLM_STORE"  # of the environment: the folder of engines that name none


def chosen_store(store: str | Path | None) -> str | None:
    """The folder that is given, else the one that the environment names, else none; `""` stays, and means none.

    It is absolute: a program that changes its working directory afterwards means the same one.

    Raises:
        ConfigError: no name of a folder
    """
    chosen = os.environ.get(STORE_VARIABLE) or None if store is None else store
    return str(store_folder(chosen)) if chosen not in (None, "") else chosen


class Options(TypedDict, total=False):
    """Options of `generate`, `stream` and `stream_batch`."""

    system: str | None
    """A system prompt, in front of the question."""
    chat_template: bool
    """False continues the question as it stands; so does a tokenizer without a template."""
    max_new_tokens: int | None
    """Tokens that the answer may have; by default 256, or what the window leaves."""
    stop: Sequence[str] | str | None
    """Strings that end the answer and are not part of it. With a chat template, white space before the answer's first
    word is not part of it either, and not searched."""
    temperature: float
    """0, the default, is greedy. The other sampling options are those of transformers."""
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    """The same seed gives the same answer; without one, each answer is drawn anew."""
    method: str | None
    """"focus", "plain", "select", "experts" or "auto"; by default the engine's."""
    on_reading: OnReading | None
    """Called with a `Reading` once the chunks have been looked for, and after each pass over others; of questions about
    the same chunks, for all of them together. Not called where the documents are read in one row with the question."""
    report: Report | None
    """Called with the number of chunks prefilled so far and in all. It may be slow, and may ask the engine."""
    sources: bool
    """Also tell which passages the answer rests on: after its last token it is explained, as by `explain`."""
    live_evidence: bool
    """Of `stream` and `stream_batch`: each piece also tells what its tokens draw on (`Piece.evidence`)."""


@dataclass(frozen=True)
class CheckedOptions:
    """Options with their defaults, checked."""

    system: str | None
    chat_template: bool
    max_new_tokens: int | None
    stops: tuple[str, ...]
    sampling: SamplingConfig
    method: str | None
    on_reading: OnReading | None
    report: Report | None
    sources: bool = False
    live_evidence: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any], *, called: str) -> CheckedOptions:
        """From what a caller gave to the method named `called`.

        Raises:
            ConfigError: an unknown or misplaced option, or an impossible value
        """
        _refuse_unknown(options, called)
        new_tokens = options.get("max_new_tokens")
        if new_tokens is not None and (type(new_tokens) is not int or new_tokens < 1):
            raise ConfigError(f"max_new_tokens={new_tokens!r}: must be a whole number, and at least 1.")
        if new_tokens is not None and new_tokens >= 2**63:
            raise ConfigError(f"max_new_tokens={shown(new_tokens)}: must be a whole number of at most 19 digits.")
        for name, (kind, wanted) in _TYPES.items():
            if options.get(name) is not None and not isinstance(options[name], kind):
                raise ConfigError(f"{name}={shown(options[name])}: must be {wanted}.")
        if options.get("live_evidence") and called == "generate":
            raise ConfigError(
                "live_evidence=True: generate() returns a whole answer. Take stream() or stream_batch(), whose pieces "
                "have it, or sources=True, which is exact."
            )
        sampling = {field.name: options[field.name] for field in fields(SamplingConfig) if field.name in options}
        return cls(
            system=options.get("system"),
            chat_template=options.get("chat_template") is not False,
            max_new_tokens=new_tokens,
            stops=_checked_stop(options.get("stop")),
            sampling=SamplingConfig(**sampling),
            method=options.get("method"),
            on_reading=options.get("on_reading"),
            report=options.get("report"),
            sources=options.get("sources") is True,
            live_evidence=options.get("live_evidence") is True,
        )


_TYPES: dict[str, tuple[Any, str]] = {
    "system": (str, "a text"),
    "chat_template": (bool, "True or False"),
    "method": (str, "a text"),
    "on_reading": (Callable, "a function of one Reading"),
    "report": (Callable, "a function of two numbers"),
    "sources": (bool, "True or False"),
    "live_evidence": (bool, "True or False"),
}
_OPTIONS = tuple(Options.__annotations__)
_SETTINGS = tuple(field.name for field in fields(FocusConfig))
_NEARLY_THE_SAME = 0.8  # from here on, a name is not taken for an argument of transformers
_OTHER_NAMES = {
    "max_tokens": "max_new_tokens",
    "n_predict": "max_new_tokens",
    "max_length": "max_new_tokens",
    "system_prompt": "system",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "progress": "report",
    "callback": "report",
    "citations": "sources",
    "return_sources": "sources",
}


def _refuse_unknown(options: Mapping[str, Any], called: str) -> None:
    name = next((name for name in options if name not in _OPTIONS), None)
    if name is None:
        return
    if name in _SETTINGS:
        raise ConfigError(
            f"{called}() takes no {name!r}: it is a setting of the engine. Give it when the engine is made: "
            f"FocusEngine.from_pretrained(…, {name}=…)."
        )
    near = nearest(name, [*_OPTIONS, "documents"])
    hint = f"Did you mean {near!r}?" if near else f"It takes: {', '.join(_OPTIONS)}."
    raise ConfigError(f"{called}() takes no option {name!r}. {hint}")


def split_settings(
    config: FocusConfig | None, settings: Mapping[str, Any]
) -> tuple[FocusConfig | None, dict[str, Any]]:
    """Of the settings of an engine: fields of `FocusConfig`, and the rest, which is for transformers.

    Raises:
        ConfigError: a setting both ways, or a name that is nearly one of ours
    """
    flat = {name: value for name, value in settings.items() if name in _SETTINGS}
    arguments = {name: value for name, value in settings.items() if name not in _SETTINGS}
    if flat and config is not None:
        raise ConfigError(f"{next(iter(flat))} is given beside config=FocusConfig(…). Give it in one place.")
    sizes = ["store_bytes", "host_bytes"]
    own = ["model", "adapter", "device", "dtype", "config", "method", "progress", *sizes, *_SETTINGS]
    for name in arguments:
        if name in _OPTIONS:
            called = "stream" if name == "live_evidence" else "generate"
            raise ConfigError(f"{name} is an option of a call: engine.{called}(…, {name}=…).")
        near = next(iter(get_close_matches(name, own, n=1, cutoff=_NEARLY_THE_SAME)), None)
        if near is not None:  # anything else is for transformers
            raise ConfigError(f"from_pretrained() takes no {name!r}. Did you mean {near!r}?")
    return FocusConfig(**flat) if flat else config, arguments


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is probably meant to be."""
    other = _OTHER_NAMES.get(name)
    known = list(known)
    if other in known:
        return other
    return next(iter(get_close_matches(name, known, n=1, cutoff=0.6)), None)


def _checked_stop(stop: Sequence[str] | str | None) -> tuple[str, ...]:
    if stop is not None and (not isinstance(stop, Iterable) or isinstance(stop, bytes | Mapping)):
        raise ConfigError(f"stop={shown(stop)}: must be a text or a list of texts.")
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for text in stops:
        if not isinstance(text, str):
            raise ConfigError(f"stop holds {shown(text)}: every one must be a text.")
    if "" in stops:
        raise ConfigError("stop holds an empty string, which would end every answer at once.")
    return stops
