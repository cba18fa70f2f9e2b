"""What every method must do, through the engine: one class, which a new method's test inherits."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import pytest

from focus_core import Finished, FocusEngine, Piece
from focus_core.engine.options import CheckedOptions
from tests.engines import A, B, C, make_engine

QUESTIONS = ["Why?", "A much longer question about the second of the documents?", "Where is the end"]
DOCUMENTS = ["a", "ab", "ba", "caa"]  # a letter is a text, or several small ones


class MethodConformance:
    """Answers depend on question, documents and options, and on nothing else."""

    method: str
    reads_chunks = True
    config: ClassVar[dict[str, Any]] = {}
    texts: ClassVar[dict[str, list[str]]] = {"a": [A], "b": [B], "c": [C]}
    packs = False  # they share chunks

    def engine(self) -> FocusEngine:
        """An engine that has read nothing yet; documents fit the plain model's window, so that all methods can run."""
        return make_engine(method=self.method, plain_up_to=0, **self.config)

    def of(self, letters: str) -> list[str]:
        """The documents that letters stand for."""
        return [text for letter in letters for text in self.texts[letter]]

    def cold(self, question: str, letters: str, new_tokens: int = 8) -> str:
        return self.engine().generate(question, self.of(letters), max_new_tokens=new_tokens).text

    def test_its_name_is_in_every_answer(self) -> None:
        answer = self.engine().generate(QUESTIONS[0], self.of("a"), max_new_tokens=2)
        assert answer.method == self.method
        assert (answer.usage.chunks > 0) == self.reads_chunks
        assert (0 < answer.usage.chunks < len(self.of("a"))) == self.packs

    @pytest.mark.parametrize("letters", DOCUMENTS)
    def test_prepared_documents_answer_as_cold_ones(self, letters: str) -> None:
        engine = self.engine()
        documents: list[Any] = self.of(letters)
        if self.reads_chunks:
            prepared = {letter: engine.prepare(self.of(letter)) for letter in self.texts}
            documents = [prepared[letter] for letter in letters]
            engine.generate("Something else?", [prepared["c"], prepared["a"]], max_new_tokens=3)
        answer = engine.generate(QUESTIONS[0], documents, max_new_tokens=8)
        assert answer.text == self.cold(QUESTIONS[0], letters)
        if self.packs:  # chunks that hold documents which were prepared apart have been read just now
            answer = engine.generate(QUESTIONS[0], documents, max_new_tokens=8)
            assert answer.text == self.cold(QUESTIONS[0], letters)
        if self.reads_chunks:
            tokens = answer.usage.document_tokens if self.packs else sum(map(len, self.of(letters)))
            if (shortlist := self.config.get("shortlist")) is not None:
                tokens = sum(len(found.chunk.token_ids) for found in answer.chunk_scores)
                assert len(answer.chunk_scores) <= shortlist
            assert (answer.usage.cache_creation, answer.usage.cache_read) == (0, tokens)

    def test_a_stream_is_the_answer(self) -> None:
        events = list(self.engine().stream(QUESTIONS[1], self.of("ab"), max_new_tokens=8))
        assert "".join(event.text for event in events) == self.cold(QUESTIONS[1], "ab")
        assert all(isinstance(event, Piece) for event in events[:-1])
        assert isinstance(events[-1], Finished)
        assert len(events[-1].tokens) == events[-1].usage.output_tokens == 8

    def test_a_batch_is_each_question_alone(self) -> None:
        answers = self.engine().generate(QUESTIONS, self.of("ab"), max_new_tokens=8)
        assert [answer.text for answer in answers] == [self.cold(question, "ab") for question in QUESTIONS]

    def test_a_batch_over_different_documents_is_each_question_alone(self) -> None:
        documents = [self.of(letters) for letters in ("a", "ba", "a")]
        answers = self.engine().generate(QUESTIONS, documents, max_new_tokens=8)
        wanted = [self.cold(QUESTIONS[0], "a"), self.cold(QUESTIONS[1], "ba"), self.cold(QUESTIONS[2], "a")]
        assert [answer.text for answer in answers] == wanted

    def test_a_question_that_joins_disturbs_no_other(self) -> None:
        engine = self.engine()
        first = engine.stream(QUESTIONS[1], self.of("ab"), max_new_tokens=12)
        text = "".join(next(first).text for _ in range(3))
        second = engine.generate(QUESTIONS[0], self.of("ab"), max_new_tokens=4)
        third = engine.generate(QUESTIONS[2], self.of("ab"), max_new_tokens=3)
        text += "".join(event.text for event in first)
        assert text == self.cold(QUESTIONS[1], "ab", 12)
        assert second.text == self.cold(QUESTIONS[0], "ab", 4)
        assert third.text == self.cold(QUESTIONS[2], "ab", 3)

    def test_threads(self) -> None:
        engine, answers = self.engine(), dict[str, str]()

        def ask(question: str) -> None:
            answers[question] = engine.generate(question, self.of("ab"), max_new_tokens=8).text

        threads = [threading.Thread(target=ask, args=(question,), daemon=True) for question in QUESTIONS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert answers == {question: self.cold(question, "ab") for question in QUESTIONS}

    def test_a_closed_stream_leaves_nothing_behind(self) -> None:
        engine = self.engine()
        stream = engine.stream(QUESTIONS[0], self.of("a"), max_new_tokens=50)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert engine.shared.scheduler.idle
        assert engine.generate(QUESTIONS[0], self.of("a"), max_new_tokens=8).text == self.cold(QUESTIONS[0], "a")

    def test_an_interrupted_step_can_be_taken_again(self) -> None:
        """The scheduler starts questions anew from the tokens they have; the next token must be the same."""
        engine = self.engine()
        whole = engine.generate(QUESTIONS[1], self.of("ab"), max_new_tokens=8)
        (request,) = engine._requests([QUESTIONS[1]], self.of("ab"), _options(), batch=False)
        rows = engine._prefill(request.plan.method, request.plan.chunks)
        rows.begin()
        while not rows.complete:
            rows.step(set())
        for done in (1, 4):
            question = request.question.continued(whole.tokens[:done])
            logits = request.plan.method.decoding(rows.chunk_set, [question]).start()
            assert int(logits.argmax()) == whole.tokens[done]


def _options() -> CheckedOptions:
    return CheckedOptions.of({"max_new_tokens": 8}, called="generate")
