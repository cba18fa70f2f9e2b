"""What LlamaIndex's wrappers of local models can do, tried out: one script for every environment.

`python llama_index_probe.py huggingface|focusllm FOLDER` prints, as JSON, what the wrapper of that package does for
each feature: "yes", or "no" with what happened instead. The model in FOLDER is tiny and random, with one token per
letter; `llama_index_features.py` makes it and prints both results side by side. This script imports neither package by
itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

from llama_index.core import get_response_synthesizer  # noqa: E402
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock  # noqa: E402
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler  # noqa: E402
from llama_index.core.prompts import PromptTemplate  # noqa: E402
from llama_index.core.schema import Document, NodeWithScore, TextNode  # noqa: E402
from pydantic import BaseModel  # noqa: E402

QUESTION = "Who came at noon?"
TOKENS = 24
WINDOW = 4096  # positions of the model
PATIENCE = 62.0  # seconds before the first token: longer than a minute
LONGEST = 240.0  # seconds that any probe may take
SLOW = 0.02  # seconds added to each pass where something else is to happen meanwhile
STORY = "The gates were closed at noon, and nobody saw the keeper again. "


@dataclass(frozen=True)
class Subject:
    """A wrapper, and how it is spoken to.

    Attributes:
        make: the wrapper, with settings of the constructor
        network: the model below
    """

    name: str
    make: Callable[..., Any]
    network: Callable[[Any], Any]


class No(Exception):
    """A feature is not there; the message says what happened instead."""


def require(condition: Any, otherwise: str) -> None:
    if not condition:
        raise No(otherwise)


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def streamed(llm: Any, question: str = QUESTION, **options: Any) -> str:
    return "".join(item.delta or "" for item in llm.stream_complete(question, **options))


# --- looking inside ---------------------------------------------------------------------------------------------------


@contextmanager
def at_each_pass(subject: Subject, llm: Any, act: Callable[[int], None] = lambda _: None) -> Iterator[list[int]]:
    """Calls `act` with the number of the pass through the model; gives the number of tokens of every pass."""
    tokens: list[int] = []

    def hook(_module: Any, given: Any) -> None:
        tokens.append(given[0].numel())
        act(len(tokens))

    handle = subject.network(llm).get_input_embeddings().register_forward_pre_hook(hook)
    try:
        yield tokens
    finally:
        handle.remove()


@contextmanager
def positions(subject: Subject, llm: Any) -> Iterator[list[int]]:
    """The furthest position of every pass."""
    seen: list[int] = []

    def hook(_module: Any, given: Any, named: Any) -> None:
        found = named.get("position_ids", given[1] if len(given) > 1 else None)
        if found is not None:
            seen.append(int(found.max()))

    handle = subject.network(llm).base_model.rotary_emb.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def slowly(_: int) -> None:
    time.sleep(SLOW)


# --- answers ----------------------------------------------------------------------------------------------------------


def no_echo(subject: Subject) -> None:
    require(QUESTION not in subject.make().complete(QUESTION).text, "the answer begins with the prompt")


def streams(subject: Subject) -> None:
    llm = subject.make()
    require(streamed(llm) == llm.complete(QUESTION).text, "the pieces are not the answer of complete")


def streams_by_token(subject: Subject) -> None:
    """The tiny model writes no spaces, as some languages do."""
    pieces = [item.delta for item in subject.make().stream_complete(QUESTION)]
    require(sum(map(bool, pieces)) > 3, "waits for a space, and without any for the end")


def streams_the_same_prompt(subject: Subject) -> None:
    llm = subject.make(completion_to_prompt=lambda prompt: f"A much longer prompt: {prompt}")
    with at_each_pass(subject, llm) as whole:
        llm.complete(QUESTION)
    with at_each_pass(subject, llm) as pieces:
        streamed(llm)
    require(pieces[0] == whole[0], "stream_complete forgets completion_to_prompt")


def _ticks(work: Callable[[], Any]) -> int:
    """How often the event loop came round."""

    async def run() -> int:
        task, ticks = asyncio.ensure_future(work()), 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        await task
        return ticks

    return asyncio.run(run())


def awaits(subject: Subject) -> None:
    llm = subject.make()
    with at_each_pass(subject, llm, slowly):
        ticks = _ticks(lambda: llm.acomplete(QUESTION))
    require(ticks > 10, "the event loop stands still meanwhile")


def streams_async(subject: Subject) -> None:
    llm = subject.make()

    async def consume() -> None:
        async for _ in await llm.astream_complete(QUESTION):
            pass

    with at_each_pass(subject, llm, slowly):
        ticks = _ticks(consume)
    require(ticks > 10, "the event loop stands still meanwhile")


def chat_template(subject: Subject) -> None:
    """The template of the tiny model writes `user: …`, a line end, and `assistant:`."""
    llm = subject.make()
    with at_each_pass(subject, llm) as passes:
        llm.chat(user(QUESTION))
    expected = len(f"user: {QUESTION}\nassistant:")
    require(passes[0] in (expected, expected + 1), f"{passes[0]} tokens instead of {expected}")


# --- settings ---------------------------------------------------------------------------------------------------------


def _stopped(whole: str, stop: str, found: str) -> None:
    require(found != whole, "ignored")
    require(found == whole[: whole.index(stop)], "obeyed, but left in the answer")


def stop_of_a_call(subject: Subject) -> None:
    llm = subject.make()
    whole = llm.complete(QUESTION).text
    _stopped(whole, whole[5:7], llm.complete(QUESTION, stop=[whole[5:7]]).text)


def stop_while_streaming(subject: Subject) -> None:
    llm = subject.make()
    whole = streamed(llm)
    _stopped(whole, whole[5:7], streamed(llm, stop=[whole[5:7]]))


def stop_of_the_constructor(subject: Subject) -> None:
    whole = subject.make().complete(QUESTION).text
    try:
        llm = subject.make(stop=[whole[5:7]])
    except Exception as error:
        raise No("token ids only (stopping_ids)") from error
    _stopped(whole, whole[5:7], llm.complete(QUESTION).text)


def limit_of_a_call(subject: Subject) -> None:
    answer = subject.make().complete(QUESTION, max_new_tokens=3).text
    require(len(answer) == 3, f"{len(answer)} tokens instead of 3")


def temperature_of_a_call(subject: Subject) -> None:
    llm = subject.make()
    plain = llm.complete(QUESTION).text
    require(llm.complete(QUESTION, temperature=5.0, seed=1).text != plain, "ignored")


def unknown_setting(subject: Subject) -> None:
    try:
        subject.make(temprature=0.5)
    except Exception as error:
        require("temprature" in str(error), f"{type(error).__name__}, without its name")
    else:
        raise No("accepted, without effect")


def unknown_argument(subject: Subject) -> None:
    try:
        subject.make().complete(QUESTION, temprature=0.5)
    except Exception as error:
        require("temprature" in str(error), f"{type(error).__name__}, without its name")
    else:
        raise No("accepted, without effect")


# --- reports ----------------------------------------------------------------------------------------------------------


def _usage(raw: Any) -> dict[str, Any]:
    usage = raw.get("usage") if isinstance(raw, dict) else None
    require(usage, "none")
    assert usage is not None
    return dict(usage)


def usage(subject: Subject) -> None:
    require(_usage(subject.make().complete(QUESTION).raw)["completion_tokens"] == TOKENS, "wrong")


def usage_while_streaming(subject: Subject) -> None:
    *_, last = subject.make().stream_complete(QUESTION)
    require(_usage(last.raw)["completion_tokens"] == TOKENS, "wrong")


def reason_for_the_end(subject: Subject) -> None:
    raw = subject.make().complete(QUESTION).raw
    require(isinstance(raw, dict) and raw.get("finish_reason") == "length", "none")


def _events(subject: Subject, name: str) -> int:
    llm = subject.make()
    counter = TokenCountingHandler(tokenizer=list)
    llm.callback_manager = CallbackManager([counter])
    answer = getattr(llm, name)(user(QUESTION) if name.endswith("chat") else QUESTION)
    if name.startswith("a"):
        asyncio.run(_awaited(answer))
    return len(counter.llm_token_counts)


async def _awaited(answer: Any) -> Any:
    return await answer


def counted_once(subject: Subject) -> None:
    counts = {name: _events(subject, name) for name in ("complete", "chat", "acomplete", "achat")}
    wrong = {name: count for name, count in counts.items() if count != 1}
    require(not wrong, ", ".join(f"{name} is counted {count} times" for name, count in wrong.items()))


def pickles(subject: Subject) -> None:
    llm = subject.make()
    llm.complete(QUESTION)
    frozen = pickle.dumps(llm)
    require(len(frozen) < 100_000, f"with all weights, {len(frozen):,} bytes of a tiny model")
    require(pickle.loads(frozen).complete(QUESTION).text == llm.complete(QUESTION).text, "another answer")


def window_beyond_the_models(subject: Subject) -> None:
    found = subject.make().metadata.context_window
    require(found > WINDOW, f"{found:,}, the model's own")


# --- messages, structure ----------------------------------------------------------------------------------------------


def pictures_are_not_dropped(subject: Subject) -> None:
    """To refuse it is honest."""
    blocks: Any = [TextBlock(text="What is this?"), ImageBlock(url="https://example.org/a.png")]
    try:
        subject.make().chat([ChatMessage(role="user", blocks=blocks)])
    except Exception:
        return
    raise No("accepted, and never shown to the model")


class Person(BaseModel):
    """Somebody."""

    name: str


def structured_prediction(subject: Subject) -> None:
    """Whether the model is asked with the schema; a random model writes no JSON."""
    llm = subject.make()
    with at_each_pass(subject, llm) as passes, suppress(ValueError):
        llm.structured_predict(Person, PromptTemplate("{who}?"), who="Ada")
    require(passes[0] > 100, "the schema is not shown to the model")


# --- long texts -------------------------------------------------------------------------------------------------------


def documents_as_they_are(subject: Subject) -> None:
    llm = subject.make()
    about = llm.complete(QUESTION, documents=[Document(text=STORY)]).text
    require(about != llm.complete(QUESTION).text, "accepted, and never shown to the model")


def longer_than_the_window(subject: Subject) -> None:
    """A prompt of twice the window is either answered within the positions that the model knows, or refused."""
    llm = subject.make()
    with positions(subject, llm) as seen:
        llm.complete(STORY * (2 * WINDOW // len(STORY)) + QUESTION)
    require(seen, "positions not seen")
    if max(seen) >= WINDOW:
        raise No(f"answered at positions up to {max(seen):,}, trained for {WINDOW:,}; no error")


def second_question_is_cheaper(subject: Subject) -> None:
    llm = subject.make()
    story = " ".join(f"On day {number} the gates were closed at noon." for number in range(40))
    with at_each_pass(subject, llm) as first:
        llm.complete(f"{story}\n{QUESTION}", documents=[story])
    with at_each_pass(subject, llm) as second:
        llm.complete(f"{story}\nWhat was closed?", documents=[story])
    require(sum(second) < sum(first) - len(story) // 2, f"{sum(second):,} tokens read, {sum(first):,} before")


def one_call_for_a_long_text(subject: Subject) -> None:
    """Through LlamaIndex's default synthesizer, which cuts by `metadata`."""
    llm = subject.make()
    counter = TokenCountingHandler(tokenizer=list)
    llm.callback_manager = CallbackManager([counter])
    synthesizer = get_response_synthesizer(llm=llm, callback_manager=llm.callback_manager)
    nodes = [NodeWithScore(node=TextNode(text=STORY * 150)) for _ in range(4)]
    synthesizer.synthesize(QUESTION, nodes)
    require(len(counter.llm_token_counts) == 1, f"{len(counter.llm_token_counts)} calls")


def error_through_the_synthesizer(subject: Subject) -> None:
    """What a model says that cannot answer must not become an answer."""
    llm = subject.make()

    def fail(_: int) -> None:
        raise RuntimeError("broken on purpose")

    with at_each_pass(subject, llm, fail):
        try:
            answer = get_response_synthesizer(llm=llm).synthesize(QUESTION, [NodeWithScore(node=TextNode(text=STORY))])
        except RuntimeError:
            return
    raise No(f"answers {str(answer)!r}")


# --- streams in trouble -----------------------------------------------------------------------------------------------


def slow_first_token(subject: Subject) -> None:
    llm = subject.make()
    expected = streamed(llm)
    with at_each_pass(subject, llm, lambda number: time.sleep(PATIENCE if number == 1 else 0)):
        require(streamed(llm) == expected, "another answer")


def error_while_streaming(subject: Subject) -> None:
    def fail(number: int) -> None:
        if number > 4:
            raise RuntimeError("broken on purpose")

    llm = subject.make()
    threading.excepthook = lambda _: None  # the other thread's traceback is what we ask about
    with at_each_pass(subject, llm, fail):
        outcome: list[Any] = []

        def consume() -> None:
            try:
                outcome.append(streamed(llm))
            except RuntimeError as error:
                outcome.append(error)

        reader = threading.Thread(target=consume, daemon=True)
        reader.start()
        reader.join(20.0)
    require(outcome, "the reader still waits after 20 seconds")
    require(isinstance(outcome[0], RuntimeError), "the stream ends as if the answer were complete")


def closing_stops(subject: Subject) -> None:
    llm = subject.make()
    with at_each_pass(subject, llm, slowly) as passes:
        stream = llm.stream_complete(QUESTION)
        next(stream)
        stream.close()
        del stream
        taken = len(passes)
        time.sleep(1.0)
    require(len(passes) <= taken + 3, "the model goes on to the end")


FEATURES: dict[str, Callable[[Subject], None]] = {
    "the answer does not repeat the prompt": no_echo,
    "streaming": streams,
    "streaming, token by token": streams_by_token,
    "streaming sees the same prompt as `complete`": streams_the_same_prompt,
    "`acomplete` leaves the event loop free": awaits,
    "`astream_complete` leaves the event loop free": streams_async,
    "the model's chat template": chat_template,
    "stop strings per call": stop_of_a_call,
    "stop strings per call, streamed": stop_while_streaming,
    "stop strings in the constructor": stop_of_the_constructor,
    "length of the answer per call": limit_of_a_call,
    "temperature per call": temperature_of_a_call,
    "an unknown setting is refused": unknown_setting,
    "an unknown argument of a call is refused": unknown_argument,
    "token usage": usage,
    "token usage, streamed": usage_while_streaming,
    "why the answer ended": reason_for_the_end,
    "one event for one answer": counted_once,
    "can be pickled": pickles,
    "a picture is not dropped in silence": pictures_are_not_dropped,
    "structured prediction by prompting": structured_prediction,
    "documents as objects beside the prompt": documents_as_they_are,
    "`metadata` allow more than the model's window": window_beyond_the_models,
    "no position beyond the model's window": longer_than_the_window,
    "a text of nine windows in one call": one_call_for_a_long_text,
    "a second question about a text reads less": second_question_is_cheaper,
    "an error of the model gets through a synthesizer": error_through_the_synthesizer,
    "a first token after more than a minute": slow_first_token,
    "an error in mid-stream reaches the reader": error_while_streaming,
    "closing a stream stops the model": closing_stops,
}


def verdict(probe: Callable[[Subject], None], subject: Subject) -> str:
    """In a thread of its own: some of what is asked about never comes back."""
    found: list[str] = []

    def run() -> None:
        try:
            probe(subject)
        except No as reason:
            found.append(f"no: {reason}")
        except Exception as error:
            first_line = next(iter(str(error).splitlines()), "")
            found.append(f"no: {type(error).__name__}: {first_line[:120]}")
        else:
            found.append("yes")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONGEST)
    return found[0] if found else f"no: nothing after {LONGEST:.0f} s"


def huggingface(folder: Path) -> Subject:
    from llama_index.llms.huggingface import HuggingFaceLLM

    def make(**settings: Any) -> Any:
        return HuggingFaceLLM(
            model_name=str(folder),
            tokenizer_name=str(folder),
            context_window=WINDOW,
            max_new_tokens=TOKENS,
            generate_kwargs={"do_sample": False},
            device_map="cpu",
            **settings,
        )

    return Subject("HuggingFaceLLM", make, lambda llm: llm._model)


def focusllm(folder: Path) -> Subject:
    from focus_integrations.llama_index import FocusLLM

    def make(**settings: Any) -> Any:
        return FocusLLM(model=str(folder), adapter=str(folder / "adapter"), max_tokens=TOKENS, **settings)

    return Subject("FocusLLM", make, lambda llm: llm.engine.shared.loaded.model)


def main(package: str, folder: str) -> None:
    logging.disable(logging.CRITICAL)
    subject = {"huggingface": huggingface, "focusllm": focusllm}[package](Path(folder))
    results = {}
    for feature, probe in FEATURES.items():
        results[feature] = verdict(probe, subject)
        print(f"{subject.name}: {feature}: {results[feature]}", file=sys.stderr, flush=True)
    print(json.dumps({subject.name: results}))
    sys.stdout.flush()
    os._exit(0)  # threads of streams that were closed may still be at work


if __name__ == "__main__":
    main(*sys.argv[1:])
