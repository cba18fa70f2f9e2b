"""What LangChain's wrappers of local models can do, tried out: one script for every environment.

`python langchain_probe.py huggingface|focusllm FOLDER` prints, as JSON, what each wrapper of that package does for each
feature: "yes", or "no" with what happened instead. The model in FOLDER is tiny and random, with one token per letter;
`langchain_features.py` makes it and prints both results side by side. This script imports neither package by itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

from langchain_core.caches import InMemoryCache  # noqa: E402
from langchain_core.callbacks import BaseCallbackHandler  # noqa: E402
from langchain_core.documents import Document  # noqa: E402
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage  # noqa: E402
from langchain_core.messages.content import create_plaintext_block, create_text_block  # noqa: E402
from langchain_core.rate_limiters import BaseRateLimiter  # noqa: E402
from langchain_core.tools import tool  # noqa: E402
from pydantic import BaseModel, ValidationError  # noqa: E402

QUESTION = "Who came at noon?"
TOKENS = 24
PATIENCE = 62.0  # seconds before the first token: longer than a minute
STORY = "The gates were closed at noon, and nobody saw the keeper again. "


@dataclass(frozen=True)
class Subject:
    """One wrapper, and how it is spoken to.

    Attributes:
        make: the wrapper, with settings of the constructor
        options: `max_tokens` or `temperature` as arguments of a call
        network: the model below
        ask_about: puts a text and a question to a wrapper, in the way that its package means it
        window: positions it was trained for
    """

    name: str
    make: Callable[..., Any]
    options: Callable[..., dict[str, Any]]
    network: Callable[[Any], Any]
    ask_about: Callable[[Any, str, str], Any] = lambda model, text, question: model.invoke(f"{text}\n\n{question}")
    window: int = 4096
    chat: bool = False


class No(Exception):
    """A feature is not there; the message says what happened instead."""


def require(condition: Any, otherwise: str) -> None:
    if not condition:
        raise No(otherwise)


def text_of(answer: Any) -> str:
    content = getattr(answer, "content", None)
    return str(answer if content is None else content)


def ask(subject: Subject, model: Any, question: Any = QUESTION, **options: Any) -> str:
    return text_of(model.invoke(question, **options))


# --- answers ----------------------------------------------------------------------------------------------------------


def no_echo(subject: Subject) -> None:
    require(QUESTION not in ask(subject, subject.make(defaults=True)), "the answer begins with the prompt")


def streams(subject: Subject) -> None:
    model = subject.make()
    pieces = [text_of(piece) for piece in model.stream(QUESTION)]
    require(sum(map(bool, pieces)) > 1, "comes in one piece")
    require("".join(pieces) == ask(subject, model), "the pieces are not the answer of invoke")


def awaits(subject: Subject) -> None:
    model = subject.make()
    expected = ask(subject, model)
    require(text_of(asyncio.run(model.ainvoke(QUESTION))) == expected, "another answer")


def streams_async(subject: Subject) -> None:
    model = subject.make()

    async def pieces() -> list[str]:
        return [text_of(piece) async for piece in model.astream(QUESTION)]

    require("".join(asyncio.run(pieces())) == ask(subject, model), "another answer")


def batches(subject: Subject) -> None:
    model = subject.make()
    questions = [QUESTION, "Why?", "What did the keeper of the gate say to the baker?"]
    singles = [ask(subject, model, question) for question in questions]
    require([text_of(answer) for answer in model.batch(questions)] == singles, "other answers than one by one")


def one_pass_for_a_batch(subject: Subject) -> None:
    """Passes through the model, counted: a batch takes no more of them than one question."""
    model = subject.make()
    single, several = Counted(subject, model), Counted(subject, model)
    with single:
        ask(subject, model)
    with several:
        model.batch([QUESTION, QUESTION.replace("noon", "dawn"), QUESTION.replace("noon", "dusk")])
    require(several.passes < 2 * single.passes, f"{several.passes} passes for three, {single.passes} for one")


# --- settings ---------------------------------------------------------------------------------------------------------


def stop_of_a_call(subject: Subject) -> None:
    model = subject.make()
    whole = ask(subject, model)
    stop = whole[5:7]
    stopped = ask(subject, model, stop=[stop])
    require(stopped != whole, "ignored")
    require(stopped == whole[: whole.index(stop)], "obeyed, but left in the answer")


def stop_while_streaming(subject: Subject) -> None:
    model = subject.make()
    whole = ask(subject, model)
    stop = whole[5:7]
    stopped = "".join(text_of(piece) for piece in model.stream(QUESTION, stop=[stop]))
    require(stopped != whole, "ignored")
    require(stopped == whole[: whole.index(stop)], "obeyed, but left in the answer")


def stop_of_the_constructor(subject: Subject) -> None:
    whole = ask(subject, subject.make())
    stop = whole[5:7]
    require(ask(subject, subject.make(stop=[stop])) == whole[: whole.index(stop)], "ignored")


def limit_of_a_call(subject: Subject) -> None:
    answer = ask(subject, subject.make(), **subject.options(max_tokens=3))
    require(len(answer) == 3, f"{len(answer)} tokens instead of 3")


def temperature_of_a_call(subject: Subject) -> None:
    model = subject.make()
    require(ask(subject, model, **subject.options(temperature=5.0)) != ask(subject, model), "ignored")


def unknown_setting(subject: Subject) -> None:
    try:
        subject.make(temprature=0.5)
    except Exception as error:
        require("temprature" in str(error), f"{type(error).__name__}, without its name")
    else:
        raise No("accepted, without effect")


def unknown_argument(subject: Subject) -> None:
    try:
        ask(subject, subject.make(), temprature=0.5)
    except Exception as error:
        require("temprature" in str(error), f"{type(error).__name__}, without its name")
    else:
        raise No("accepted, without effect")


# --- reports ----------------------------------------------------------------------------------------------------------


class Watching(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens = 0
        self.results: list[Any] = []

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.tokens += 1

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.results.append(response)


def _reported(result: Any) -> str:
    """Everything that LangChain was told about an answer."""
    generation = result.generations[0][0]
    message = getattr(generation, "message", None)
    told = [result.llm_output, generation.generation_info]
    told += [message.usage_metadata, message.response_metadata] if message is not None else []
    return str(told)


def usage(subject: Subject) -> None:
    watching = Watching()
    subject.make().invoke(QUESTION, {"callbacks": [watching]})
    require("_tokens'" in _reported(watching.results[0]), "none")


def usage_while_streaming(subject: Subject) -> None:
    watching = Watching()
    for _ in subject.make().stream(QUESTION, {"callbacks": [watching]}):
        pass
    require("_tokens'" in _reported(watching.results[0]), "none")


def reason_for_the_end(subject: Subject) -> None:
    watching = Watching()
    subject.make().invoke(QUESTION, {"callbacks": [watching]})
    require("finish_reason': 'length'" in _reported(watching.results[0]), "none")


def counts_tokens(subject: Subject) -> None:
    counted = subject.make().get_num_tokens("abcdef")
    require(counted == 6, f"{counted} instead of 6")


def callbacks_see_tokens(subject: Subject) -> None:
    watching = Watching()
    pieces = list(subject.make().stream(QUESTION, {"callbacks": [watching]}))
    require(watching.tokens == len(pieces), f"{watching.tokens} events for {len(pieces)} pieces")


class Gate(BaseRateLimiter):
    passed = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.passed += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire(blocking=blocking)


def rate_limiter(subject: Subject) -> None:
    gate = Gate()
    ask(subject, subject.make(rate_limiter=gate))
    require(gate.passed, "accepted, never asked")


def knows_its_window(subject: Subject) -> None:
    profile = getattr(subject.make(), "profile", None) or {}
    require(profile.get("max_input_tokens"), "not known")


def caches_tell_calls_apart(subject: Subject) -> None:
    model = subject.make(cache=InMemoryCache())
    long = ask(subject, model)
    short = ask(subject, model, **subject.options(max_tokens=3))
    require(short != long, "another call's answer")
    require(ask(subject, model) == long, "another call's answer")


# --- what a chat model is asked ---------------------------------------------------------------------------------------


def any_order_of_messages(subject: Subject) -> None:
    for messages in (
        [HumanMessage("Hello"), HumanMessage(QUESTION)],
        [HumanMessage("Hello"), AIMessage("Yes?"), SystemMessage("Be brief.")],
        [HumanMessage(QUESTION), AIMessage("It was")],
    ):
        ask(subject, subject.make(), messages)


def tools_are_not_dropped(subject: Subject) -> None:
    @tool
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    model = subject.make()
    try:
        bound = model.bind_tools([add])
    except NotImplementedError:
        return  # said honestly
    with Counted(subject, model) as with_tools:
        bound.invoke(QUESTION)
    with Counted(subject, model) as without:
        model.invoke(QUESTION)
    require(with_tools.tokens > without.tokens, "accepted, and never shown to the model")


class Person(BaseModel):
    """Somebody."""

    name: str


def structured_output(subject: Subject) -> None:
    """Whether it can be asked for at all; a random model writes no JSON."""
    from langchain_core.exceptions import OutputParserException

    with suppress(OutputParserException):
        subject.make().with_structured_output(Person).invoke(QUESTION)


def document_blocks(subject: Subject) -> None:
    """The same text in two blocks, whose ids LangChain makes up anew, is the same document."""
    model = subject.make()
    answers = {
        ask(subject, model, [HumanMessage([create_plaintext_block(text=STORY), create_text_block(QUESTION)])])  # type: ignore[list-item]
        for _ in range(2)
    }
    require(len(answers) == 1, "the block's Python text, id and all, becomes the prompt")


def document_objects(subject: Subject) -> None:
    model = subject.make()
    asked_for = ask(subject, model, documents=[Document(STORY)])
    require(asked_for != ask(subject, model), "accepted, and never shown to the model")


# --- long texts -------------------------------------------------------------------------------------------------------


@dataclass
class Counted:
    """Passes through the model, tokens that went in, and the furthest position any of them had."""

    subject: Subject
    model: Any
    passes: int = 0
    tokens: int = 0
    furthest: int = -1
    _handles: list[Any] = field(default_factory=list)

    def __enter__(self) -> Counted:
        network = self.subject.network(self.model)
        self._handles = [
            network.get_input_embeddings().register_forward_hook(self._embedded),
            network.base_model.rotary_emb.register_forward_pre_hook(self._turned, with_kwargs=True),
        ]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _embedded(self, _module: Any, given: Any, _result: Any) -> None:
        self.passes += 1
        self.tokens += given[0].numel()

    def _turned(self, _module: Any, given: Any, named: Any) -> None:
        positions = named.get("position_ids", given[1] if len(given) > 1 else None)
        if positions is not None:
            self.furthest = max(self.furthest, int(positions.max()))


def longer_than_the_window(subject: Subject) -> None:
    """A prompt of twice the window is either answered within the positions that the model knows, or refused."""
    model = subject.make()
    with Counted(subject, model) as counted:
        ask(subject, model, STORY * (2 * subject.window // len(STORY)) + QUESTION)
    require(counted.furthest >= 0, "positions not seen")
    if counted.furthest >= subject.window:
        raise No(f"answered at positions up to {counted.furthest:,}, trained for {subject.window:,}; no error")


def second_question_is_cheaper(subject: Subject) -> None:
    model = subject.make()
    story = " ".join(f"On day {number} the gates were closed, writes {subject.name}." for number in range(40))
    with Counted(subject, model) as first:
        subject.ask_about(model, story, QUESTION)
    with Counted(subject, model) as second:
        subject.ask_about(model, story, "What was closed?")
    require(second.tokens < first.tokens - len(story) // 2, f"{second.tokens:,} tokens read, {first.tokens:,} before")


# --- streams in trouble -----------------------------------------------------------------------------------------------


@contextmanager
def before_each_pass(subject: Subject, model: Any, act: Callable[[int], None]) -> Iterator[list[float]]:
    """Calls `act` with the number of the pass; gives the times of all passes."""
    times: list[float] = []

    def hook(*_: Any) -> None:
        times.append(time.monotonic())
        act(len(times))

    handle = subject.network(model).get_input_embeddings().register_forward_pre_hook(hook)
    try:
        yield times
    finally:
        handle.remove()


def slow_first_token(subject: Subject) -> None:
    model = subject.make()
    expected = "".join(text_of(piece) for piece in model.stream(QUESTION))
    with before_each_pass(subject, model, lambda number: time.sleep(PATIENCE if number == 1 else 0)):
        streamed = "".join(text_of(piece) for piece in model.stream(QUESTION))
    require(streamed == expected, "another answer")


def error_while_streaming(subject: Subject) -> None:
    def fail(number: int) -> None:
        if number > 4:
            raise RuntimeError("broken on purpose")

    model = subject.make()
    threading.excepthook = lambda _: None  # the other thread's traceback is what we ask about
    try:
        with before_each_pass(subject, model, fail):
            for _ in model.stream(QUESTION):
                pass
    except RuntimeError as error:
        require("broken on purpose" in str(error), f"another error: {error}")
    except Exception as error:
        raise No(f"raises {type(error).__name__}") from error
    else:
        raise No("the answer just ends")


def closing_stops_the_work(subject: Subject) -> None:
    model = subject.make()
    with before_each_pass(subject, model, lambda _: time.sleep(0.05)) as times:
        stream = model.stream(QUESTION)
        for _ in range(3):
            next(stream)
        stream.close()
        closed = time.monotonic()
        time.sleep(2)
    late = sum(moment > closed + 0.1 for moment in times)
    require(not late, f"{late} passes more")


FEATURES: dict[str, tuple[Callable[[Subject], None], bool]] = {  # and whether it is for chat models only
    "token streaming": (streams, False),
    "`ainvoke`": (awaits, False),
    "`astream`": (streams_async, False),
    "the answer leaves the prompt out by default": (no_echo, False),
    "`stop` of a call, `invoke`": (stop_of_a_call, False),
    "`stop` of a call, `stream`": (stop_while_streaming, False),
    "`stop` of the constructor": (stop_of_the_constructor, False),
    "length of one call's answer": (limit_of_a_call, False),
    "temperature of one call": (temperature_of_a_call, False),
    "a misspelt setting is refused": (unknown_setting, False),
    "a misspelt argument of a call is refused": (unknown_argument, False),
    "token usage, `invoke`": (usage, False),
    "token usage, `stream`": (usage_while_streaming, False),
    "finish reason": (reason_for_the_end, False),
    "token counting, offline": (counts_tokens, False),
    "token callbacks": (callbacks_see_tokens, False),
    "rate limiter": (rate_limiter, False),
    "a batch answers as single calls do": (batches, False),
    "a batch is one pass per token": (one_pass_for_a_batch, False),
    "a response cache tells calls apart": (caches_tell_calls_apart, False),
    "context window is known": (knows_its_window, True),
    "messages in any order": (any_order_of_messages, True),
    "tools are used, or refused": (tools_are_not_dropped, True),
    "structured output can be asked for": (structured_output, True),
    "`text-plain` blocks are documents": (document_blocks, True),
    "whole documents as an argument": (document_objects, False),
    "a text of two windows is read within the window": (longer_than_the_window, False),
    "a second question does not read again": (second_question_is_cheaper, False),
    "an error while streaming reaches the caller": (error_while_streaming, False),
    "closing a stream stops the work": (closing_stops_the_work, False),
    "the first token may take more than a minute": (slow_first_token, False),
}


def verdict(probe: Callable[[Subject], None], subject: Subject) -> str:
    try:
        probe(subject)
    except No as reason:
        return f"no: {reason}"
    except ValidationError:
        return "no: refused by the constructor"
    except Exception as error:
        line = (str(error).splitlines() or [""])[0].rstrip(".")
        return f"no: raises {type(error).__name__}" + (f" ({line[:90]})" if line else "")
    return "yes"


# --- the wrappers -----------------------------------------------------------------------------------------------------


def huggingface(folder: Path) -> list[Subject]:
    from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

    def pipeline(defaults: bool = False, **settings: Any) -> Any:
        arguments: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False}
        if not defaults:  # so that echo costs one row of the table, and not all of them
            arguments["return_full_text"] = False
        return HuggingFacePipeline.from_model_id(
            str(folder), "text-generation", pipeline_kwargs=arguments, batch_size=4, **settings
        )

    def chat(defaults: bool = False, stop: list[str] | None = None, **settings: Any) -> Any:
        ends = {} if stop is None else {"stop_sequences": stop}
        return ChatHuggingFace(llm=pipeline(defaults), **ends, **settings)

    def options(max_tokens: int = TOKENS, temperature: float = 0.0) -> dict[str, Any]:
        arguments: dict[str, Any] = {"max_new_tokens": max_tokens, "return_full_text": False}
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        return {"pipeline_kwargs": arguments | sampling}

    return [
        Subject("HuggingFacePipeline", pipeline, options, lambda model: model.pipeline.model),
        Subject("ChatHuggingFace", chat, options, lambda model: model.llm.pipeline.model, chat=True),
    ]


def focusllm(folder: Path) -> list[Subject]:
    from focus_integrations.langchain import ChatFocusLLM, FocusLLM

    common = {"model": str(folder), "adapter": str(folder / "adapter"), "max_tokens": TOKENS}

    def options(**given: Any) -> dict[str, Any]:
        return given

    def network(model: Any) -> Any:
        return model.engine.shared.loaded.model

    def ask_about(model: Any, text: str, question: str) -> Any:
        return model.invoke(question, documents=[text])

    def make(wrapper: Callable[..., Any]) -> Callable[..., Any]:
        return lambda defaults=False, **settings: wrapper(**common, **settings)

    return [
        Subject("FocusLLM", make(FocusLLM), options, network, ask_about),
        Subject("ChatFocusLLM", make(ChatFocusLLM), options, network, ask_about, chat=True),
    ]


def main(package: str, folder: str) -> None:
    logging.disable(logging.CRITICAL)
    results: dict[str, dict[str, str]] = {}
    for subject in {"huggingface": huggingface, "focusllm": focusllm}[package](Path(folder)):
        results[subject.name] = {}
        for feature, (probe, chat_only) in FEATURES.items():
            found = "–" if chat_only and not subject.chat else verdict(probe, subject)
            results[subject.name][feature] = found
            print(f"{subject.name}: {feature}: {found}", file=sys.stderr, flush=True)
    print(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)  # threads of streams that were closed may still be at work


if __name__ == "__main__":
    main(*sys.argv[1:])
