"""Sources of answers: exact losses, right characters, whatever was read before and however it is batched."""

from __future__ import annotations

import random
import textwrap
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from focus_core import ConfigError, Document, Finished, FocusEngine, FocusModel, FocusWarning, OutOfMemoryError, device
from focus_core.cli.loading import read_documents
from focus_core.engine import attribution
from focus_core.engine.answers import Answer
from focus_core.engine.places import chunk_places, sentence_places, with_pieces
from focus_core.engine.sources import Explanation
from focus_core.evaluation.facts import filler_sentences, hide
from focus_core.methods import focus_evidence
from focus_core.methods.evidence import NO_COST
from tests.allocations import Allocations
from tests.embedded import FACTS, book, needs_embedded, question_about
from tests.engines import QUESTION, A, B, make_engine
from tests.text.pdfs import pdf_with

METHODS = ["focus", "plain", "select", "experts"]


def _ask(engine: FocusEngine, documents: Any, **options: Any) -> Answer:
    return engine.generate(QUESTION, documents, max_new_tokens=4, sources=True, **options)


def _explained(answer: Answer) -> Explanation:
    assert answer.explanation is not None
    return answer.explanation


def _losses(answer: Answer) -> list[float]:
    return [chunk.loss for chunk in _explained(answer).chunks]


@pytest.mark.parametrize("method", METHODS)
def test_the_log_probabilities_are_the_answers_own(method: str) -> None:
    """Nothing left out: what the decoding computes when it is fed with the answer."""
    engine = make_engine(method=method)
    answer = _ask(engine, [A, B])
    plan = answer.plan
    assert plan is not None
    chunks = engine._chunks_again(plan)
    decoding = plan.method.decoding(chunks, [plan.question])
    logits = [decoding.start(), *(decoding.step(torch.tensor([token])) for token in answer.tokens[:-1])]
    wanted = [float(of[0].log_softmax(-1)[token]) for of, token in zip(logits, answer.tokens, strict=True)]
    assert _explained(answer).log_probs == pytest.approx(wanted, abs=1e-4)
    assert any(abs(loss) > 0.01 for loss in _losses(answer))


@pytest.mark.parametrize("method", METHODS)
def test_prepared_documents_and_batches_have_the_sources_of_cold_ones(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = _explained(_ask(make_engine(method=method), [A, B]))
    engine = make_engine(method=method)
    documents = [A, B] if method == "plain" else [engine.prepare(A), engine.prepare(B)]
    warm = _explained(_ask(engine, documents))
    small = make_engine(method=method, store_bytes=0)
    monkeypatch.setattr(FocusModel, "tokens_per_pass", 1)
    one_by_one = small.explain(small.generate(QUESTION, [A, B], max_new_tokens=4))
    for other in (warm, one_by_one):
        assert [chunk.loss for chunk in other.chunks] == pytest.approx([c.loss for c in cold.chunks], abs=1e-4)
        assert [(s.document, s.start, s.end, s.role) for s in other.sources] == [
            (s.document, s.start, s.end, s.role) for s in cold.sources
        ]
        assert other.support == pytest.approx(cold.support, abs=1e-4)


@needs_embedded
@pytest.mark.parametrize("method", METHODS)
def test_without_sentences_sources_are_chunks_and_cost_less(method: str) -> None:
    rng = random.Random(5)
    text = hide(FACTS[:1], filler_sentences(rng, 10), rng).text
    engine = FocusEngine.from_pretrained(progress=False, method=method, chunk_size=48, plain_up_to=10_000)
    answer = engine.generate(question_about(FACTS[0]), text, max_new_tokens=16)
    fine, coarse = engine.explain(answer), engine.explain(answer, sentences=False)
    assert coarse.cost.tokens <= coarse.cost_of_chunks.tokens <= fine.cost_of_chunks.tokens
    assert coarse.cost.tokens < fine.cost.tokens
    assert coarse.chunks == fine.chunks
    assert coarse.support == fine.support
    assert coarse.sources
    for source in coarse.sources:
        chunk = coarse.chunks[source.chunk]
        raw = text[chunk.start : chunk.end]
        assert source.excerpt == raw.strip() == text[source.start : source.end]
        assert source.start == chunk.start + len(raw) - len(raw.lstrip())


@needs_embedded
def test_without_sentences_documents_that_share_a_chunk_are_told_apart() -> None:
    engine = FocusEngine.from_pretrained(progress=False, pack=True, method="focus")
    documents = [f"The {fact.attribute} of {fact.entity} is {fact.value}." for fact in FACTS[:3]]
    answer = engine.generate(question_about(FACTS[2]), documents, max_new_tokens=16)
    found = engine.explain(answer, sentences=False)
    assert [chunk.documents for chunk in found.chunks] == [(0, 1, 2)]
    assert [source.document for source in found.sources] == [2]
    assert found.sources[0].excerpt == documents[2]


def test_streams_and_batches_carry_sources() -> None:
    engine = make_engine()
    alone = _ask(engine, [A, B])
    *_, end = engine.stream(QUESTION, [A, B], max_new_tokens=4, sources=True)
    assert isinstance(end, Finished)
    assert end.explanation is not None
    assert end.sources == alone.sources
    batch = engine.generate([QUESTION, "Why?"], [A, B], max_new_tokens=4, sources=True)
    assert _losses(batch[0]) == pytest.approx(_losses(alone), abs=1e-4)
    assert _losses(batch[1]) != pytest.approx(_losses(alone), abs=1e-4)


def test_without_the_option_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "explain", None)  # whatever calls it fails
    monkeypatch.setattr(FocusEngine, "_explain", None)
    answer = make_engine().generate(QUESTION, [A, B], max_new_tokens=4)
    assert (answer.explanation, answer.sources, answer.supported) == (None, (), None)


@pytest.mark.parametrize("method", METHODS)
def test_the_option_costs_nothing_until_the_answer_is_there(method: str) -> None:
    """Up to its end, an answer with sources takes the same operations and the same bytes as one without."""
    found = []
    for sources in (False, True):
        engine = make_engine(method=method)
        with Allocations() as made:
            engine.generate(QUESTION, [A, B], max_new_tokens=4, sources=sources)
        found.append(made.found)
    without, with_sources = found
    assert len(without) > 100
    assert with_sources[: len(without)] == without
    assert len(with_sources) > len(without)


def test_documents_have_the_sums_of_their_chunks() -> None:
    explanation = _explained(_ask(make_engine(), [Document(A, name="a"), B, A]))
    sums = [0.0, 0.0, 0.0]
    for chunk in explanation.chunks:
        (document,) = chunk.documents
        sums[document] += chunk.loss
    assert [document.loss for document in explanation.documents] == pytest.approx(sums)
    assert [(document.document, document.name) for document in explanation.documents] == [
        (0, "a"),
        (1, None),
        (2, None),
    ]


def test_chunks_have_the_characters_of_their_documents() -> None:
    texts = [A, B]
    explanation = _explained(_ask(make_engine(), texts))
    joined = ["", ""]
    for chunk in explanation.chunks:
        joined[chunk.documents[0]] += texts[chunk.documents[0]][chunk.start : chunk.end]
    assert joined == texts


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("method", ["select", "experts"])
def test_a_shortlist_leaves_documents_what_they_are(method: str, repeated: bool) -> None:
    """Documents were counted by their first chunks, which a shortlist may leave out: sources named document -1."""
    engine = make_engine(method=method, shortlist=2, pack=False)
    filler = "Nothing of note was said that day. " * 6
    texts = [filler, f"{filler}Which otters? Which? ", f"{filler}Which one, which? "]
    documents = [Document(text, name=f"page {number}") for number, text in enumerate(texts)]
    if repeated:
        documents += documents[1:]
    answer = engine.generate("Which?", documents, max_new_tokens=4, sources=True)
    chunks = _explained(answer).chunks
    assert len(chunks) == 2
    for chunk, found in zip(chunks, answer.chunk_scores, strict=True):
        (index,) = chunk.documents
        assert documents[index] is found.chunk.document
        assert chunk.start is not None
        assert found.chunk.characters == (chunk.start, chunk.end)
    for source in _explained(answer).sources:
        assert source.name == documents[source.document].name
        assert source.excerpt == texts[1:][(source.document - 1) % 2][source.start : source.end]
    assert {of.name for of in _explained(answer).documents} <= {"page 1", "page 2"}


def test_the_page_is_that_of_the_first_word() -> None:
    """A chunk may begin with the form feed that ends the page before; characters are those of the words."""
    pages = [A[:100].strip(), B[:100].strip(), A[100:200].strip()]
    document = Document("\n\f".join(pages), name="pages")
    engine = make_engine(method="plain")
    found = engine.explain(_ask(engine, [document]), sentences=False, every_chunk=True)
    assert found.sources
    for source in found.sources:
        assert document.text is not None
        assert source.excerpt == document.text[source.start : source.end] == source.excerpt.strip()
        assert source.page == document.text[: source.start].count("\f") + 1


def test_an_answer_without_documents_has_no_sources() -> None:
    engine = make_engine()
    answer = engine.generate(QUESTION, max_new_tokens=3, sources=True)
    assert (answer.sources, answer.supported) == ((), None)
    assert engine.cost_of_sources(answer) == NO_COST


def test_a_foreign_answer_is_refused() -> None:
    answer = make_engine().generate(QUESTION, [A], max_new_tokens=2)
    with pytest.raises(ConfigError, match="another engine"):
        make_engine().explain(answer)


def test_the_cost_is_said_before() -> None:
    engine = make_engine()
    answer = engine.generate(QUESTION, [A, B], max_new_tokens=4)
    before = engine.cost_of_sources(answer)
    spent = engine.explain(answer).cost
    assert 0 < before.tokens <= spent.tokens
    assert 0 < before.passes <= spent.passes


def test_explaining_while_others_are_answered() -> None:
    engine = make_engine()
    answer = engine.generate(QUESTION, [A, B], max_new_tokens=4)
    alone, texts = engine.explain(answer), list[str]()
    thread = threading.Thread(target=lambda: texts.append(engine.generate("Why?", [A], max_new_tokens=8).text))
    thread.start()
    meanwhile = engine.explain(answer)
    thread.join()
    assert texts == [make_engine().generate("Why?", [A], max_new_tokens=8).text]
    assert meanwhile.support == pytest.approx(alone.support, abs=1e-4)


# --- places -----------------------------------------------------------------------------------------------------------

PAGES = Document(
    "Seite 1.\nDie Ä-Frage ist offen.\f\n“Who signed?”  Nobody did.\n\n東京は首都です。京都は古い。 End", name="p.pdf"
)
SENTENCES = [
    "Seite 1.",
    "Die Ä-Frage ist offen.",
    "“Who signed?”",
    "Nobody did.",
    "東京は首都です。",
    "京都は古い。",
    "End",
]


@pytest.mark.parametrize("pack", [False, True])
def test_sentences_are_the_characters_of_the_right_document(pack: bool) -> None:
    """Also where small documents share a chunk, and the same document comes twice."""
    documents = ["Alpha one two three. Beta four five six.", PAGES, "Gamma.", PAGES]
    engine = make_engine(chunk_size=512 if pack else 64, pack=pack, window=1024)
    answer = engine.generate(QUESTION, documents, max_new_tokens=1)
    assert answer.plan is not None
    question = answer.plan.question
    assert any(chunk.parts for chunk in question.chunks) == pack
    found: dict[int, list[str]] = {}
    for of_chunk in chunk_places(question):
        for place in sentence_places(question, of_chunk):
            chunk, passage = question.chunks[place.passage.chunk], place.passage
            said = engine.tokenizer.decode(chunk.token_ids[passage.start : passage.stop])
            assert place.excerpt is not None
            assert said.strip() == place.excerpt
            found.setdefault(place.index, []).append(place.excerpt)
    if pack:
        assert found[0] == ["Alpha one two three.", "Beta four five six."]
        assert (
            found[1]
            == found[3]
            == [SENTENCES[0], SENTENCES[1], " ".join(SENTENCES[2:4]).replace("” ", "”  "), *SENTENCES[4:]]
        )
    assert sorted(found) == [0, 1, 2, 3]


def test_pieces_stand_for_chunks_where_the_plain_model_reads() -> None:
    engine = make_engine(method="plain")
    answer = engine.generate(QUESTION, [A, B], max_new_tokens=1)
    assert answer.plan is not None
    question = with_pieces(answer.plan.question)
    assert question.layout.selection(question.chunks, question.context) == answer.plan.question.whole
    assert len(question.chunks) > 4


def test_memories_that_do_not_fit_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token of the answer has another memory; a long answer about many chunks would take them all at once."""
    engine = make_engine(method="focus")
    answer = engine.generate(QUESTION, [A, B], max_new_tokens=4)
    slots, focus = len(engine.explain(answer).chunks) * len(answer.tokens), engine.focus
    needed = 2 * slots * focus.parts.num_layers * focus.bytes_per_layer
    monkeypatch.setattr(device, "free_memory", lambda _: needed)
    engine.explain(answer)
    monkeypatch.setattr(device, "free_memory", lambda _: needed - 1)
    with pytest.raises(OutOfMemoryError, match=r"memory of each of 4 answer tokens .*max_new_tokens"):
        engine.explain(answer)


@pytest.mark.parametrize(
    "ask",
    [
        lambda engine, **options: [engine.generate(QUESTION, [A, B], **options)],
        lambda engine, **options: list(engine.stream(QUESTION, [A, B], **options)),
    ],
    ids=["generate", "stream"],
)
def test_an_answer_whose_sources_do_not_fit_is_not_lost(
    ask: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(method="focus")
    wanted = engine.generate(QUESTION, [A, B], max_new_tokens=4)

    def refuse(*_: object, **__: object) -> None:
        raise OutOfMemoryError("0.00 GiB are free.")

    monkeypatch.setattr(focus_evidence, "require_memory", refuse)
    with pytest.warns(FocusWarning, match=r"without sources\. 0\.00 GiB are free"):
        events = ask(engine, max_new_tokens=4, sources=True)
    end = events[-1]
    assert "".join(event.text for event in events) == wanted.text
    assert end.tokens == wanted.tokens
    assert (end.explanation, end.sources, end.supported) == (None, (), None)


# --- supported --------------------------------------------------------------------------------------------------------


@needs_embedded
@pytest.mark.parametrize("method", METHODS)
def test_the_share_that_documents_explain_by_hand(method: str) -> None:
    """Of a sure answer all; of one that the documents make likelier and not likely, a part."""
    engine = FocusEngine.from_pretrained(progress=False, method=method, supported_share=0.0)
    fact = FACTS[0]
    answer = engine.generate(question_about(fact), f"The {fact.attribute} of {fact.entity} is {fact.value}.")
    unlikely = replace(answer, tokens=(*answer.tokens, *engine.tokenize(" Lisbon rudder")))
    for one, least, most in ((answer, 0.8, 1.0), (unlikely, 0.1, 0.7)):
        found = engine.explain(one, sentences=False)
        lost = sum(loss for loss in found.without_documents if loss >= 0.1)
        assert found.explained == pytest.approx(lost / (lost - sum(found.log_probs)), abs=1e-4)
        assert least < found.explained <= most
        assert found.support > 5
        assert found.supported


@needs_embedded
def test_an_answer_that_documents_explain_too_little_of_is_not_supported() -> None:
    """As measured for the embedded model, or as set."""
    fact = FACTS[0]
    text, settings = f"The {fact.attribute} of {fact.entity} is {fact.value}.", [{}, {"supported_share": 0.0}]
    usual, any_share = (FocusEngine.from_pretrained(progress=False, method="focus", **one) for one in settings)
    assert usual.config.supported_share == 0.97
    answers = [engine.generate(question_about(fact), text) for engine in (usual, any_share)]
    unlikely = [replace(one, tokens=(*one.tokens, *usual.tokenize(" Lisbon rudder"))) for one in answers]
    assert [usual.explain(one, sentences=False).supported for one in (answers[0], unlikely[0])] == [True, False]
    assert any_share.explain(unlikely[1], sentences=False).supported


# --- right answers ----------------------------------------------------------------------------------------------------


@pytest.mark.long
@needs_embedded
def test_the_embedded_models_answer_names_its_sentence() -> None:
    fact = FACTS[1]
    engine = FocusEngine.from_pretrained(progress=False)
    sentences = book().split(". ")
    place = next(number for number, sentence in enumerate(sentences) if fact.value in sentence)
    text = ". ".join(sentences[place - 20 : place + 60])
    answer = engine.generate(question_about(fact), text, max_new_tokens=24, sources=True, method="focus")
    (source,) = answer.sources
    assert fact.value in source.excerpt
    assert fact.entity in source.excerpt
    assert source.role == "sole"
    assert text[source.start : source.end] == source.excerpt
    assert answer.supported


@needs_embedded
@pytest.mark.slow
def test_sources_of_a_restored_and_edited_document_have_its_characters(tmp_path: Path) -> None:
    """Chunks come from the folder, and all but those around the edit are older than the text that they stand in."""
    fact, sentences = FACTS[1], book().split(". ")
    place = next(number for number, sentence in enumerate(sentences) if fact.value in sentence)
    before = Document(". ".join(sentences[place - 25 : place + 25]), name="before")
    after = Document(f"This is new. {before.text} So is this.", name="after")
    settings: dict[str, Any] = {
        "store": tmp_path,
        "method": "focus",
        "chunk_size": 256,
        "boundaries": "content",
        "progress": False,
    }
    FocusEngine.from_pretrained(**settings).prepare(before)
    found = []
    for store in (tmp_path, ""):
        engine = FocusEngine.from_pretrained(**{**settings, "store": store})
        engine.store.memory.clear()
        answer = engine.generate(question_about(fact), after, max_new_tokens=24, sources=True)
        assert (answer.usage.cache_read > answer.usage.document_tokens / 2) == bool(store)
        found += answer.sources
    restored, cold = found
    assert after.text is not None
    assert after.text[restored.start : restored.end] == restored.excerpt
    assert fact.value in restored.excerpt
    assert (restored.name, restored.start, restored.end, restored.role) == ("after", cold.start, cold.end, cold.role)
    assert restored.score == pytest.approx(cold.score, abs=1e-3)


@needs_embedded
@pytest.mark.slow
def test_sources_in_a_folder_name_file_page_and_sentence(tmp_path: Path) -> None:
    """The fact stands in a PDF, broken over two lines of its second page, beside a text of another encoding."""
    fact, rng = FACTS[1], random.Random(5)
    around = [filler_sentences(rng, 30) for _ in range(3)]
    hidden = hide([fact], around[1], rng)
    ((first, stop),) = hidden.spans
    pages = [" ".join(around[0]), hidden.text, " ".join(around[2])]
    lines = ["\n".join(textwrap.wrap(page, 70)) for page in pages]
    assert hidden.text[first:stop] not in lines[1], "it has to be broken"
    (tmp_path / "contract.pdf").write_bytes(pdf_with(*lines))
    (tmp_path / "notes.txt").write_bytes(
        "\r\n".join(f"Café. {one}" for one in filler_sentences(rng, 30)).encode("utf-16")
    )
    documents = read_documents([str(tmp_path)])
    engine = FocusEngine.from_pretrained(method="focus", chunk_size=256, progress=False)
    (source,) = engine.generate(question_about(fact), documents, max_new_tokens=24, sources=True).sources
    document = documents[source.document]
    assert document.name == source.name == str(tmp_path / "contract.pdf")
    assert document.text is not None
    assert document.text[source.start : source.end] == source.excerpt
    assert source.excerpt == hidden.text[first:stop]
    assert source.page == 2
    assert ", page 2, characters" in str(source)


COPY = "The home city of Clara Fenwick is Lisbon. "
GRASS = "The grass is green and the sky is blue. "


@needs_embedded
@pytest.mark.slow
@pytest.mark.parametrize(("noise", "copies"), [(1, 4), (0, 4), (4, 5), (3, 2)])
@pytest.mark.parametrize("pack", [False, True])
def test_passages_of_which_most_say_the_same_support_the_answer(noise: int, copies: int, pack: bool) -> None:
    """As passages that a search finds may do: each would do, and none is the form of the answer."""
    documents = [f"{GRASS * 2}Number {number}." for number in range(noise)]
    documents += [f"{COPY}Note {number}." for number in range(copies)]
    engine = FocusEngine.from_pretrained(method="focus", pack=pack, progress=False)
    answer = engine.generate(question_about(FACTS[1]), documents, max_new_tokens=20, sources=True)
    assert answer.supported
    assert {source.document for source in answer.sources} == set(range(noise, noise + copies))
    assert {source.role for source in answer.sources} == {"redundant"}
    assert all("Lisbon" in source.excerpt for source in answer.sources)
