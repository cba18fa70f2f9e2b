"""Questions of several clients run together, and each gets what it would get alone."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar
from weakref import WeakSet, ref

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from torch import Tensor

from focus_core import (
    ConfigError,
    FocusEngine,
    FocusModel,
    OutOfMemoryError,
)
from focus_core import device as device_module
from focus_core.cache.chunks import ChunkBlock
from focus_core.engine import scheduler as scheduler_module
from focus_core.engine.options import CheckedOptions
from focus_core.engine.prefill import ChunkPrefill
from focus_core.engine.sampling import Sampler
from focus_core.methods.focus import FocusDecoding
from focus_core.methods.plain import PlainDecoding
from tests.engines import QUESTION, A, B, C, cold, make_engine


@pytest.fixture
def engine() -> FocusEngine:
    return make_engine()


def test_two_open_streams_of_one_thread_do_not_disturb_each_other(engine: FocusEngine) -> None:
    """A lock held for a whole stream would hang here."""
    streams = [engine.stream(QUESTION, [text], max_new_tokens=8) for text in (A, B)]
    texts = ["", ""]
    alive: list[tuple[int, Iterator[object]]] = list(enumerate(streams))
    while alive:
        for index, stream in list(alive):
            piece = next(stream, None)
            if piece is None:
                alive.remove((index, stream))
            else:
                texts[index] += piece.text  # type: ignore[attr-defined]
    assert texts == [cold(QUESTION, [A]), cold(QUESTION, [B])]


def test_closing_a_stream_leaves_the_engine_free(engine: FocusEngine) -> None:
    stream = engine.stream(QUESTION, [A], max_new_tokens=50)
    next(stream)
    stream.close()
    assert engine.shared.scheduler.idle
    assert engine.generate(QUESTION, [A], max_new_tokens=8).text == cold(QUESTION, [A])


def test_threads_get_their_own_answers(engine: FocusEngine) -> None:
    expected = {text: cold(QUESTION, [text]) for text in (A, B, C)}
    wrong: list[str] = []

    def work(text: str) -> None:
        for _ in range(3):
            if engine.generate(QUESTION, [text], max_new_tokens=8).text != expected[text]:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(text,)) for text in (A, B, C)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_step_that_ends_leaves_the_next_one_alone(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread may begin its step between the two moments at which another ends its own; a third must still wait."""
    scheduler = engine.shared.scheduler
    taken, go_on = threading.Event(), threading.Event()

    def other_step() -> None:
        with suppress(ConfigError):
            next(
                scheduler.notices(
                    engine._requests([QUESTION], [B], CheckedOptions.of({}, called="generate"), batch=False)
                )
            )

    other = threading.Thread(target=other_step)

    class Condition(threading.Condition):
        def __exit__(self, *args: Any) -> None:
            super().__exit__(*args)
            if (
                threading.current_thread() is threading.main_thread()
                and not scheduler._stepping
                and other.ident is None
            ):
                other.start()
                assert taken.wait(60)

    def step() -> None:
        taken.set()
        go_on.wait(60)
        raise ConfigError("enough")

    monkeypatch.setattr(scheduler, "_step", step)
    scheduler._changed, scheduler._stepping = Condition(), threading.get_ident()
    scheduler._end_step()
    assert scheduler._stepping == other.ident
    go_on.set()
    other.join()
    assert scheduler._stepping is None


def test_threads_that_prepare_the_same_text_read_it_once(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    prefill = engine.focus._prefill_rows

    def counting(chunks: list[list[int]], rows: Any) -> None:
        read.append(len(chunks))
        prefill(chunks, rows)

    monkeypatch.setattr(engine.focus, "_prefill_rows", counting)
    long = "".join(f"line {number}\n" for number in range(2000))
    engine.focus.config = replace(engine.focus.config, window=4096)
    threads = [threading.Thread(target=engine.prepare, args=(long,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(read) == -(-len(long) // 64)


def test_whoever_gets_a_report_may_ask(engine: FocusEngine) -> None:
    """Between two passes the engine is free, for a question about other documents too."""
    answers: list[str] = []

    def ask(done: int, total: int) -> None:
        if not answers:
            answers.append("")
            answers[0] = engine.generate(QUESTION, [C], max_new_tokens=8).text

    assert engine.generate(QUESTION, [A], max_new_tokens=8, report=ask).text == cold(QUESTION, [A])
    assert answers == [cold(QUESTION, [C])]
    assert engine.shared.scheduler.idle


def test_a_batch_too_large_for_one_pass_is_divided(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [f"Question {number}?" for number in range(7)]
    whole = engine.generate(questions, [A], max_new_tokens=6)
    sizes: list[int] = []
    step = FocusDecoding.step

    def counting(self: FocusDecoding, tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        return step(self, tokens)

    monkeypatch.setattr(FocusDecoding, "step", counting)
    three = 3 * engine.count_question_tokens(questions[0])
    monkeypatch.setattr(scheduler_module, "tokens_per_pass", lambda _: three)
    divided = engine.generate(questions, [A], max_new_tokens=6)
    assert [answer.text for answer in divided] == [answer.text for answer in whole]
    assert max(sizes) == 3


def test_questions_about_texts_in_the_window_start_together_if_they_share_them(
    engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with texts of their own, all in one pass, would take memory that nobody reckons with."""
    questions = [f"Question {number}?" for number in range(4)]
    texts, begun, made = [A, A, B, C], list[int](), PlainDecoding.__init__
    alone = [engine.generate(q, [d], max_new_tokens=6, method="plain") for q, d in zip(questions, texts, strict=True)]

    def noting(self: PlainDecoding, decoder: Any, rows: Any, *prefixes: Any) -> None:
        begun.append(len(rows))
        made(self, decoder, rows, *prefixes)

    monkeypatch.setattr(PlainDecoding, "__init__", noting)
    four = 4 * engine.count_question_tokens(questions[0])
    monkeypatch.setattr(scheduler_module, "tokens_per_pass", lambda _: four)
    together = engine.generate(questions, [[text] for text in texts], max_new_tokens=6, method="plain")
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert begun == [2, 1, 1]
    begun.clear()
    engine.generate(questions, [A], max_new_tokens=6, method="plain")
    assert begun == [4]


def test_a_part_of_a_batch_that_ends_at_once_leaves_the_others_their_chunks(
    engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "tokens_per_pass", lambda _: 1)
    answers = engine.generate(["Which?", "Who?"], [A], max_new_tokens=1)
    assert [len(answer.tokens) for answer in answers] == [1, 1]


def test_lack_of_memory_in_a_pass_names_the_way_out(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(engine.focus, "next_token_logits", failing)
    with pytest.raises(OutOfMemoryError, match=r"Tried to allocate 2 GiB.*parallel_chunks"):
        engine.generate(QUESTION, [A])
    assert engine.shared.scheduler.idle


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """What is freed is freed at once."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
def test_an_error_for_lack_of_memory_holds_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames held the chunks of other questions, so that the next question was refused too."""
    engine, blocks, empty = make_engine(store_bytes=0), WeakSet[ChunkBlock](), ChunkBlock.empty

    def noted(*arguments: Any, **options: Any) -> ChunkBlock:
        block = empty(*arguments, **options)
        blocks.add(block)
        return block

    monkeypatch.setattr(ChunkBlock, "empty", noted)
    answers = engine.stream(QUESTION, [A], max_new_tokens=8)
    next(answers)
    with monkeypatch.context() as patch:
        patch.setattr(device_module, "free_memory", lambda _: 1000)
        with pytest.raises(OutOfMemoryError) as error:
            engine.generate(QUESTION, [B * 4], max_new_tokens=8)
    assert blocks
    list(answers)
    assert not blocks
    assert error.value.__traceback__ is not None


@pytest.mark.usefixtures("_no_collector")
def test_an_error_goes_with_the_last_who_holds_it(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its frames it holds chunks."""

    def failing(*_: object, **__: object) -> None:
        raise ConfigError("no")

    monkeypatch.setattr(engine.focus, "next_token_logits", failing)
    held: list[ref[ConfigError]] = []
    try:
        engine.generate(QUESTION, [A])
    except ConfigError as error:
        held.append(ref(error))
    assert held[0]() is None


def test_lack_of_memory_at_the_beginning_names_the_way_out(
    engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(ChunkPrefill, "begin", failing)
    with pytest.raises(OutOfMemoryError, match=r"Tried to allocate 2 GiB.*parallel_chunks"):
        engine.generate(QUESTION, [A])


def test_what_is_verified_is_loaded_while_no_step_runs(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, found = engine.prepare(A), list[bool]()
    begin, load = ChunkPrefill.begin, ChunkPrefill.load_stored

    def noted(work: Callable[..., None], *arguments: Any) -> None:
        found.append(engine.shared.scheduler._stepping is not None)
        work(*arguments)

    monkeypatch.setattr(ChunkPrefill, "begin", lambda *arguments: noted(begin, *arguments))
    monkeypatch.setattr(ChunkPrefill, "load_stored", lambda *arguments: noted(load, *arguments))
    engine.verify(prepared)
    assert len(found) >= 2
    assert all(found)


def test_closing_stops_the_steps(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer would be made to its end, and thrown away."""
    steps: list[int] = []
    step = FocusModel.decode_step

    def counted(self: FocusModel, *arguments: Any, **options: Any) -> Tensor:
        steps.append(1)
        return step(self, *arguments, **options)

    monkeypatch.setattr(FocusModel, "decode_step", counted)
    monkeypatch.setattr(engine, "_end_tokens", frozenset())
    pieces = engine.stream(QUESTION, [A], max_new_tokens=50)
    next(pieces)
    pieces.close()
    assert len(steps) < 10


def test_a_batch_is_divided_by_what_the_memory_holds(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty questions, each of which could be asked alone, were refused together."""
    questions = [f"{QUESTION} {number}" for number in range(20)]
    together = engine.generate(questions, [A], max_new_tokens=8)
    monkeypatch.setattr(device_module, "free_memory", lambda _: 500 * engine.focus.cache_bytes_per_token)
    sizes: list[int] = []
    made = FocusDecoding.__init__

    def noting(self: FocusDecoding, *arguments: Any) -> None:
        made(self, *arguments)
        sizes.append(len(arguments[2]))

    monkeypatch.setattr(FocusDecoding, "__init__", noting)
    divided = engine.generate(questions, [A], max_new_tokens=8)
    assert [answer.text for answer in divided] == [answer.text for answer in together]
    assert sum(sizes) == 20
    assert 1 <= max(sizes) < 20


# --- the cost of being many -------------------------------------------------------------------------------------------


LONG = "".join(f"line {number:03}\n" for number in range(40 * 64 // 9 + 1))[: 40 * 64]


class Steps:
    """Counts the decode steps, the starts and the prefill passes that an engine runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[int] = []  # questions of each
        self.starts: list[int] = []
        self.prefills: list[int] = []  # chunks of each
        step, start, prefill = FocusDecoding.step, FocusDecoding.start, FocusModel._prefill_rows

        def counting_step(decoding: FocusDecoding, tokens: Tensor) -> Tensor:
            self.steps.append(len(tokens))
            return step(decoding, tokens)

        def counting_start(decoding: FocusDecoding) -> Tensor:
            self.starts.append(len(decoding._prompts))
            return start(decoding)

        def counting_prefill(model: FocusModel, chunks: Any, rows: Any) -> None:
            self.prefills.append(len(chunks))
            prefill(model, chunks, rows)

        monkeypatch.setattr(FocusDecoding, "step", counting_step)
        monkeypatch.setattr(FocusDecoding, "start", counting_start)
        monkeypatch.setattr(FocusModel, "_prefill_rows", counting_prefill)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def _run(jobs: list[Callable[[], None]], *, seconds: float = 60) -> None:
    """All jobs at the same time, and none of them for ever."""
    barrier = threading.Barrier(len(jobs))

    def work(job: Callable[[], None]) -> None:
        barrier.wait()
        job()

    threads = [threading.Thread(target=work, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads), "a client waits for ever"


def test_four_threads_take_the_steps_of_one_batch(steps: Steps) -> None:
    """One after the other they took 28 decode steps where a batch takes 7."""
    engine = make_engine(parallel_chunks=1)
    answers: dict[str, str] = {}
    questions = [f"Question {number}?" for number in range(4)]
    all_are_reading, seen = threading.Barrier(4), set[str]()

    def ask(question: str) -> None:
        def report(done: int, total: int) -> None:
            """At its first report each waits for the others, so that all ask at the same time on any machine."""
            if question not in seen:
                seen.add(question)
                all_are_reading.wait(30)

        answers[question] = engine.generate(question, [A, B], max_new_tokens=8, report=report).text

    _run([partial(ask, question) for question in questions])
    assert len(steps.steps) <= 8
    assert sum(steps.prefills) == 3 + 3
    assert answers == {question: cold(question, [A, B]) for question in questions}


def test_a_batch_takes_one_start_and_its_steps(engine: FocusEngine, steps: Steps) -> None:
    engine.generate([f"Question {number}?" for number in range(4)], [A, B], max_new_tokens=8)
    assert (steps.starts, steps.steps) == ([4], [4] * 7)


def test_a_question_joins_a_running_batch(engine: FocusEngine, steps: Steps) -> None:
    first = engine.stream(QUESTION, [A, B], max_new_tokens=20)
    texts = [next(first).text, ""]
    for _ in range(4):
        texts[0] += next(first).text
    steps.steps.clear()
    second = engine.stream("And then?", [A, B], max_new_tokens=8)
    texts[1] += "".join(event.text for event in second)
    texts[0] += "".join(event.text for event in first)
    assert 2 in steps.steps
    assert len(steps.steps) <= 20 - 5 + 1
    assert texts[0] == make_engine().generate(QUESTION, [A, B], max_new_tokens=20).text
    assert texts[1] == cold("And then?", [A, B])


def test_a_client_that_stops_listening_frees_its_place_at_the_next_step(engine: FocusEngine, steps: Steps) -> None:
    streams = [engine.stream(question, [A], max_new_tokens=50) for question in ("Why?", "Where?", "Who?")]
    for stream in streams:
        next(stream)
    streams[1].close()  # type: ignore[attr-defined]
    steps.steps.clear()
    while len(steps.steps) < 3:
        next(streams[0])
    assert set(steps.steps) == {2}
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    assert engine.shared.scheduler.idle


def test_a_stream_that_is_forgotten_frees_its_place(engine: FocusEngine) -> None:
    """Python closes a generator that nothing refers to any more."""
    stream = engine.stream(QUESTION, [A], max_new_tokens=50)
    next(stream)
    assert not engine.shared.scheduler.idle
    del stream
    gc.collect()
    assert engine.shared.scheduler.idle


def test_a_long_prefill_delays_others_by_one_pass_per_token(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client with a book would hold up everybody until it is read."""
    engine = make_engine(parallel_chunks=1)
    engine.focus.config = replace(engine.focus.config, window=4096)
    engine.prepare([A])
    short = engine.stream(QUESTION, [A], max_new_tokens=12)
    next(short)
    seen: list[int] = []
    reading = engine.stream(QUESTION, [LONG], max_new_tokens=2, report=lambda done, _: seen.append(done))
    # The owner of the long prefill drives; after each of its passes the short question has one more token.
    steps.prefills.clear()
    _run([lambda: [*reading], lambda: [*short]])  # type: ignore[list-item]
    assert sum(steps.prefills) == 40
    assert max(steps.prefills) == 1
    # While it was read, every pass of prefilling stood beside a step of the short question, until that was done.
    assert seen == list(range(1, 41))


def test_each_step_has_at_most_one_pass_of_prefilling(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(parallel_chunks=1)
    engine.focus.config = replace(engine.focus.config, window=4096)
    passes: list[str] = []
    for kind, name in ((FocusModel, "_prefill_rows"), (FocusDecoding, "step")):
        original = getattr(kind, name)

        def noting(*arguments: Any, _original: Any = original, _name: str = name) -> Any:
            passes.append(_name)
            return _original(*arguments)

        monkeypatch.setattr(kind, name, noting)
    engine.prepare([A])
    short = engine.stream(QUESTION, [A], max_new_tokens=12)
    next(short)
    reading = engine.stream(QUESTION, [LONG], max_new_tokens=2)
    passes.clear()
    next(reading)  # drives all 40 passes; the short question advances beside them
    first = passes[: 2 * 11]
    assert first == ["step", "_prefill_rows"] * 11
    reading.close()  # type: ignore[attr-defined]
    text = "".join(event.text for event in short)
    assert len(text) >= 1


def test_fifty_clients_of_unequal_length_all_get_their_answers() -> None:
    engine = make_engine()
    lengths = {f"Question {number}" + "?" * (number % 7): 1 + number * 7 % 11 for number in range(50)}
    documents = [[A], [B], [A, B], [C, A], [B, C]]
    answers: dict[str, str] = {}

    def ask(number: int, question: str) -> None:
        answer = engine.generate(question, documents[number % 5], max_new_tokens=lengths[question])
        answers[question] = answer.text

    _run([partial(ask, number, question) for number, question in enumerate(lengths)], seconds=200)
    alone = make_engine()
    for number, question in enumerate(lengths):
        answer = alone.generate(question, documents[number % 5], max_new_tokens=lengths[question])
        assert answers[question] == answer.text


def test_questions_about_different_documents(engine: FocusEngine) -> None:
    questions = ["Why?", "Where?", "Who?", "What?"]
    documents = [[A], [B, C], None, [A]]
    answers = engine.generate(questions, documents, max_new_tokens=8)
    for question, listed, answer in zip(questions, documents, answers, strict=True):
        assert answer.text == make_engine().generate(question, listed, max_new_tokens=8).text
        assert answer.usage.document_tokens == sum(map(len, listed or []))
    with pytest.raises(ConfigError, match="lists for 2 questions, and there are 3"):
        engine.generate(["a", "b", "c"], [[A], [B]])
    with pytest.raises(ConfigError, match="Give one list for one question"):
        engine.generate("Why?", [[A], [B]])  # type: ignore[list-item]


# --- interruptions and errors -----------------------------------------------------------------------------------------


def test_ctrl_c_in_a_step_ends_one_client_and_no_other(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step was for both: the other one goes on from the tokens it has."""
    other = engine.stream("And then?", [A, B], max_new_tokens=12)
    text = next(other).text
    stream = engine.stream(QUESTION, [A, B], max_new_tokens=30)
    next(stream)
    next(stream)
    step = FocusModel.decode_step

    def interrupted(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(FocusModel, "decode_step", step)
        raise KeyboardInterrupt

    monkeypatch.setattr(FocusModel, "decode_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    text += "".join(event.text for event in other)
    assert text == make_engine().generate("And then?", [A, B], max_new_tokens=12).text
    assert engine.shared.scheduler.idle


def test_ctrl_c_while_reading_loses_no_chunk_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(parallel_chunks=1)
    prefill = FocusModel._prefill_rows
    passes: list[int] = []

    def interrupted(model: FocusModel, chunks: Any, rows: Any) -> None:
        passes.append(1)
        if len(passes) == 4:
            raise KeyboardInterrupt
        prefill(model, chunks, rows)

    monkeypatch.setattr(FocusModel, "_prefill_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(QUESTION, [A, B], max_new_tokens=8)
    assert engine.shared.scheduler.idle
    assert engine.generate(QUESTION, [A, B], max_new_tokens=8).text == cold(QUESTION, [A, B])


def test_an_error_of_one_sampler_ends_one_question(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A penalty that overflows made the whole batch fail."""
    choose = Sampler.choose

    def failing(sampler: Sampler, logits: Tensor) -> int:
        if sampler._seen.shape == seen:
            raise RuntimeError("probability tensor contains inf")
        return choose(sampler, logits)

    monkeypatch.setattr(Sampler, "choose", failing)
    seen = torch.Size([1 + len("user: Why?\nassistant:")])
    good = engine.stream("A longer one?", [A], max_new_tokens=8, temperature=0.7, seed=1)
    text = next(good).text
    with pytest.raises(RuntimeError, match="contains inf"):
        engine.generate("Why?", [A], max_new_tokens=8, temperature=0.7)
    text += "".join(event.text for event in good)
    monkeypatch.undo()
    assert text == cold("A longer one?", [A], temperature=0.7, seed=1)


def test_an_error_of_one_prefill_ends_one_client(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = engine.stream(QUESTION, [A], max_new_tokens=12)
    text = next(other).text
    prefill = FocusModel._prefill_rows

    def failing(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(FocusModel, "_prefill_rows", failing)
    with pytest.raises(OutOfMemoryError, match="Tried to allocate 2 GiB"):
        engine.generate(QUESTION, [B], max_new_tokens=8)
    monkeypatch.setattr(FocusModel, "_prefill_rows", prefill)
    text += "".join(event.text for event in other)
    assert text == make_engine().generate(QUESTION, [A], max_new_tokens=12).text


def test_a_report_that_raises_stops_the_reading(engine: FocusEngine) -> None:
    def stop(done: int, total: int) -> None:
        raise RuntimeError(f"enough: {total}")

    with pytest.raises(RuntimeError, match="enough: 3"):
        engine.generate(QUESTION, [A], report=stop)
    assert engine.shared.scheduler.idle


@pytest.mark.parametrize(("share", "order"), [(1.5, "AAABBB"), (3.0, "ABABAB")])
def test_two_that_do_not_fit_the_memory_together_are_read_one_after_the_other(
    share: float, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would look at the same free memory, and both would begin."""
    engine = make_engine(parallel_chunks=1)
    limits = engine.outline([len(B)], len("user: Which?\nassistant:"), 2).limits
    needed = (limits.chunk_tokens + limits.appended_tokens(2)) * engine.focus.cache_bytes_per_token
    monkeypatch.setattr(device_module, "free_memory", lambda _: int(share * needed) - engine.shared.store.nbytes)
    read: list[str] = []
    prefill = FocusModel._prefill_rows

    def noting(model: FocusModel, chunks: Any, rows: Any) -> None:
        read.append("A" if engine.tokenizer.decode(chunks[0][1:]) in A else "B")
        prefill(model, chunks, rows)

    monkeypatch.setattr(FocusModel, "_prefill_rows", noting)
    answers = engine.generate([QUESTION, QUESTION], [[A], [B]], max_new_tokens=2)
    assert "".join(read) == order
    monkeypatch.undo()
    assert [answer.text for answer in answers] == [
        make_engine().generate(QUESTION, [text], max_new_tokens=2).text for text in (A, B)
    ]


# --- any sequence of operations ---------------------------------------------------------------------------------------


class ClientsAgainstOneByOne(RuleBasedStateMachine):
    """Random arrivals, steps, cancellations, budgets and methods: every answer is that of a client alone."""

    alone: ClassVar[dict[Any, str]] = {}
    fresh: ClassVar[FocusEngine] = make_engine()

    def __init__(self) -> None:
        super().__init__()
        self.engine = make_engine(parallel_chunks=2)
        settings_ = replace(self.engine.config.as_settings(), plain_up_to=0)
        without_store = FocusEngine(self.engine.shared, config=settings_, store_bytes=0)
        without_store.focus.trained = True
        self.engines = [self.engine, without_store]
        self.streams: list[tuple[Any, Iterator[Any], list[str]]] = []

    @rule(
        which=st.integers(0, 1),
        question=st.sampled_from(["Why?", "A much longer question about the second of the documents?", "x"]),
        documents=st.sampled_from([(A,), (B,), (A, B), (B, A), (C, A, A), ()]),
        length=st.integers(1, 9),
        seed=st.sampled_from([None, 3]),
    )
    def ask(self, which: int, question: str, documents: tuple[str, ...], length: int, seed: int | None) -> None:
        options = {} if seed is None else {"temperature": 0.8, "seed": seed}
        stream = self.engines[which].stream(question, list(documents) or None, max_new_tokens=length, **options)  # type: ignore[arg-type]
        self.streams.append(((question, documents, length, seed), stream, []))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), steps=st.integers(1, 4))
    def advance(self, data: st.DataObject, steps: int) -> None:
        index = data.draw(st.integers(0, len(self.streams) - 1))
        asked, stream, texts = self.streams[index]
        for _ in range(steps):
            event = next(stream, None)
            if event is None:
                assert "".join(texts) == self._alone(*asked)
                self.streams.pop(index)
                return
            texts.append(event.text)

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.streams) - 1))
        self.streams.pop(index)[1].close()  # type: ignore[attr-defined]

    @rule(document=st.sampled_from([A, B, C]))
    def prepare(self, document: str) -> None:
        self.engine.prepare(document)

    @rule()
    def evict(self) -> None:
        self.engine.shared.store.clear()

    def teardown(self) -> None:
        for asked, stream, texts in self.streams:
            texts += [event.text for event in stream]
            assert "".join(texts) == self._alone(*asked)
        assert self.engine.shared.scheduler.idle

    def _alone(self, question: str, documents: tuple[str, ...], length: int, seed: int | None) -> str:
        key = question, documents, length, seed
        if key not in self.alone:
            options = {} if seed is None else {"temperature": 0.8, "seed": seed}
            answer = self.fresh.generate(question, list(documents) or None, max_new_tokens=length, **options)  # type: ignore[arg-type]
            self.alone[key] = answer.text
        return self.alone[key]


TestClientsAgainstOneByOne = ClientsAgainstOneByOne.TestCase
TestClientsAgainstOneByOne.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
