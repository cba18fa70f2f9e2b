"""Select and experts against slow ways through transformers: scores, rows, mixing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from focus_core import Answer, FocusEngine
from focus_core.methods import scored
from focus_core.methods.mixing import Nbce, Pced, contrast_weights, nucleus
from focus_core.methods.plain import PlainDecoding
from focus_core.methods.scored import chunk_posterior
from focus_core.methods.select import SelectDecoding
from focus_core.text.chunking import Chunk
from focus_core.text.shortlist import shared_words
from tests.engines import QUESTION, A, B, C, make_engine

SYSTEM = "Be brief."
LAYOUTS = ["raw", "chat"]
SMALL = [f"Ticket {n}: ok." for n in range(12)]
WORDS = ["otters", "foxes", "larks", "badgers", "herons", "toads", "moths"]


def _prompt(engine: FocusEngine, system: str | None = None) -> tuple[list[int], list[int], tuple[int, int]]:
    """Tokens before the documents, tokens after them, and where the user's words stand in those."""
    messages = [{"role": "user", "content": QUESTION}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    prompt = engine.shared.tokenizer.prompt(messages, chat_template=True, turn=engine.layout.in_turn)
    return engine.layout.before(prompt), engine.layout.after(prompt), engine.layout.words(prompt)


@torch.no_grad()
def _likelihood(engine: FocusEngine, chunk: Chunk, after: list[int], words: tuple[int, int]) -> float:
    """One chunk alone through transformers."""
    row = torch.tensor([[*chunk.row, *after]])
    log_probs = engine.focus.model(row).logits[0].log_softmax(-1)
    first = len(chunk.row)
    found = [float(log_probs[first + at - 1, after[at]]) for at in range(*words)]
    return sum(found) / len(found)


def _selected_row(engine: FocusEngine, answer: Answer, system: str | None) -> list[int]:
    """The chunks that were read, between what stands before and after them; separators stand between documents."""
    before, after, _ = _prompt(engine, system)
    row, read = list(before), [found.chunk for found in answer.chunk_scores if found.read]
    for previous, chunk in zip([None, *read], read, strict=False):
        touches = previous is not None and chunk.continues(previous)
        row += [*(() if previous is None or touches else engine.layout.separator), *chunk.token_ids]
    return [*row, *after]


@torch.no_grad()
def _generated(engine: FocusEngine, row: list[int], new_tokens: int) -> list[int]:
    output = engine.focus.model.generate(torch.tensor([row]), max_new_tokens=new_tokens, do_sample=False)
    return output[0, len(row) :].tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("documents", [[A], [A, B, C], [C, A, A]], ids=["a", "abc", "caa"])
def test_scores_are_those_of_each_chunk_alone(layout: str, documents: list[str]) -> None:
    engine = make_engine(method="select", layout=layout)
    scores = engine.generate(QUESTION, documents, max_new_tokens=2).chunk_scores
    _, after, words = _prompt(engine)
    assert [found.score for found in scores] == pytest.approx(
        [_likelihood(engine, found.chunk, after, words) for found in scores], abs=1e-4
    )
    assert len({round(found.score, 4) for found in scores}) > 1


def test_scores_of_questions_of_different_lengths_together() -> None:
    engine = make_engine(method="select", layout="chat")
    questions = ["Why?", "Which of the two documents says more about the second one?"]
    together = engine.generate(questions, [A, B], max_new_tokens=2)
    alone = [make_engine(method="select", layout="chat").generate(q, [A, B], max_new_tokens=2) for q in questions]
    for one, other in zip(together, alone, strict=True):
        assert [s.score for s in one.chunk_scores] == pytest.approx([s.score for s in other.chunk_scores], abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_the_answer_is_the_plain_models_over_the_best_chunks(layout: str, system: str | None) -> None:
    engine = make_engine(method="select", layout=layout, select_tokens=140, select_top_p=1)
    answer = engine.generate(QUESTION, [A, B, C], max_new_tokens=12, system=system)
    read = [found for found in answer.chunk_scores if found.read]
    assert 1 < len(read) < len(answer.chunk_scores)
    assert max(answer.chunk_scores, key=lambda found: found.posterior).read
    assert list(answer.tokens) == _generated(engine, _selected_row(engine, answer, system), 12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_the_first_selected_chunk_is_not_read_again(
    layout: str, system: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where the template puts a system prompt before it."""
    engine, passes = make_engine(method="select", layout=layout, select_tokens=140, select_top_p=1), list[int]()
    append = PlainDecoding._append

    def counted(self: PlainDecoding, tokens: Tensor) -> Tensor:
        passes.append(tokens.shape[1])
        return append(self, tokens)

    monkeypatch.setattr(PlainDecoding, "_append", counted)
    answer = engine.generate(QUESTION, [A, B, C], max_new_tokens=3, system=system)
    first = next(found.chunk for found in answer.chunk_scores if found.read)
    kept = 0 if layout == "chat" and system else len(first.row)
    assert passes == [len(_selected_row(engine, answer, system)) - kept, 1, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_chunk_that_alone_makes_the_question_likely_is_read_alone(layout: str) -> None:
    """Chunks are read until those before have `select_top_p` of the posterior, computed here chunk by chunk."""
    scores = make_engine(method="select", layout=layout).generate(QUESTION, [A, B, C], max_new_tokens=1).chunk_scores
    _, _, (first, last) = _prompt(make_engine(layout=layout))
    words = shared_words(QUESTION, [found.chunk.text or "" for found in scores])
    evidence = [found.score * min(last - first, 32) + of_words for found, of_words in zip(scores, words, strict=True)]
    posterior = [math.exp(nats / 2) for nats in evidence]
    assert [found.posterior for found in scores] == pytest.approx([one / sum(posterior) for one in posterior])
    best = sorted(range(len(scores)), key=lambda index: -evidence[index])
    for top_p in (0.2, 0.5, 0.95, 1.0):
        engine = make_engine(method="select", layout=layout, select_top_p=top_p)
        answer = engine.generate(QUESTION, [A, B, C], max_new_tokens=6)
        read = [index for index, found in enumerate(answer.chunk_scores) if found.read]
        shares = [posterior[index] / sum(posterior) for index in best]
        wanted = 1 + sum(sum(shares[: number + 1]) < top_p for number in range(len(best) - 1))
        assert read == sorted(best[:wanted])
    assert len(read) == len(scores)


def test_a_long_prompt_is_not_taken_for_certainty() -> None:
    """The length of a long prompt would make any difference of scores look certain."""
    scores = [-3.0, -3.1, -2.9]
    assert chunk_posterior(scores, 500) == chunk_posterior(scores, 32) != chunk_posterior(scores, 20)
    assert max(chunk_posterior(scores, 500)) < 0.9
    assert sum(chunk_posterior(scores, 7)) == pytest.approx(1)


def test_words_that_a_chunk_shares_with_the_question_are_evidence() -> None:
    """In nats, beside the model's own: e times the probability for two nats more, at a temperature of 2."""
    first, second, third = chunk_posterior([-3.0, -3.0, -4.0], 10, [0.0, 2.0, 0.0])
    assert second / first == pytest.approx(math.e)
    assert second / third == pytest.approx(math.exp(6))


def test_of_chunks_that_the_model_takes_for_equal_the_one_with_the_words_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model takes a name that it does not know for unlikely anywhere."""
    texts = [f"Page of {name} and what came of it. " * 5 for name in ("Qvorb", "Zelph", "Drint", "Mulge")]
    monkeypatch.setattr(
        scored, "question_scores", lambda _, chunks, questions: [[-5.0] * len(chunks) for _ in questions]
    )
    engine = make_engine(method="select", pack=False, chunk_size=256, select_tokens=1)
    for name in ("Zelph", "Mulge"):
        answer = engine.generate(f"What of {name}?", texts, max_new_tokens=1)
        assert [found.read for found in answer.chunk_scores] == [name in text for text in texts]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("documents", [[A], [A, B, C], SMALL], ids=["a", "abc", "small"])
def test_select_with_every_chunk_is_the_plain_model(layout: str, documents: list[str]) -> None:
    """Also where documents share a chunk, which begins the next one after a separator."""
    engine = make_engine(layout=layout, window=512, select_top_p=1)
    select, plain = (
        engine.generate(QUESTION, documents, max_new_tokens=12, method=name) for name in ("select", "plain")
    )
    assert all(found.read for found in select.chunk_scores)
    assert any(found.chunk.parts for found in select.chunk_scores) == (documents is SMALL)
    assert select.tokens == plain.tokens
    assert (select.method, plain.method) == ("select", "plain")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_more_chunks_are_read_than_the_window_holds(layout: str) -> None:
    engine = make_engine(method="select", layout=layout, window=260, select_top_p=1)
    answer = engine.generate(QUESTION, [A, B, C], max_new_tokens=12)
    row = _selected_row(engine, answer, None)
    unread = [len(found.chunk.token_ids) for found in answer.chunk_scores if not found.read]
    assert 1 < len(answer.chunk_scores) - len(unread) < len(answer.chunk_scores)
    assert len(row) + 12 <= 260 < len(row) + 12 + min(unread)


@pytest.mark.parametrize("method", ["select", "experts"])
def test_of_many_chunks_only_those_with_the_words_of_the_question_are_read(method: str) -> None:
    texts = [f"Page {number} is about {word} and what came of it. " * 5 for number, word in enumerate(WORDS)]
    question = "What came of herons and foxes?"
    engine = make_engine(method=method, pack=False, shortlist=2, boundaries="tokens", chunk_size=256)
    answer = engine.generate(question, texts, max_new_tokens=6)
    named = [WORDS.index("foxes"), WORDS.index("herons")]
    assert [texts.index(found.chunk.text or "") for found in answer.chunk_scores] == named
    assert answer.usage.chunks == 2
    assert answer.plan is not None
    assert f"of {len(texts)} chunks the 2 that share most words" in answer.plan.reason
    only = make_engine(method=method, pack=False, chunk_size=256)
    assert only.generate(question, [texts[index] for index in named], max_new_tokens=6).tokens == answer.tokens


@pytest.mark.parametrize("method", ["select", "experts", "focus"])
def test_chunks_end_at_paragraphs_but_for_the_method_that_was_trained_otherwise(method: str) -> None:
    engine, text = make_engine(method=method), "".join(f"This is paragraph {number}.\n\n" for number in range(30))
    stops = [chunk.stop for chunk in engine.prepare(text).chunks][:-1]
    assert len(stops) > 5
    if method == "focus":
        assert stops == [*range(64, len(text), 64)]
    else:
        assert all(text[:stop].endswith(".\n\n") for stop in stops)


def test_a_shortlist_of_nothing_is_all_chunks() -> None:
    texts = [f"Page {number}: {word}." * 3 for number, word in enumerate(WORDS * 6)]
    assert len(texts) > 32
    for shortlist, chunks in ((0, len(texts)), (None, 32), (40, 40)):
        engine = make_engine(method="select", pack=False, shortlist=shortlist)
        assert engine.generate("Where are the foxes?", texts, max_new_tokens=1).usage.chunks == chunks
        assert engine.outline([60] * len(texts)).chunks == chunks


def test_focus_and_plain_have_no_shortlist() -> None:
    texts = [f"Page {number}: {word}." for number, word in enumerate(WORDS)]
    for method in ("focus", "plain"):
        engine = make_engine(method=method, pack=False, shortlist=2)
        answer = engine.generate("Where are the foxes?", texts, max_new_tokens=1)
        assert answer.usage.document_tokens == sum(len(engine.tokenize(text)) for text in texts)


def test_questions_with_different_shortlists_take_their_steps_together(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"Page {number} is about {word}." * 4 for number, word in enumerate(WORDS)]
    questions = [f"What about {word}?" for word in WORDS[:4]]
    engine = make_engine(method="select", pack=False, shortlist=2)
    rows: list[int] = []
    step = SelectDecoding.step

    def counted(self: SelectDecoding, tokens: Tensor) -> Tensor:
        rows.append(len(tokens))
        return step(self, tokens)

    monkeypatch.setattr(SelectDecoding, "step", counted)
    together = engine.generate(questions, texts, max_new_tokens=6)
    assert max(rows) == 4
    assert len(rows) <= 5 + 3  # each joins when its chunks have been read
    for question, answer in zip(questions, together, strict=True):
        alone = make_engine(method="select", pack=False, shortlist=2).generate(question, texts, max_new_tokens=6)
        assert answer.tokens == alone.tokens
        assert [found.chunk.text for found in answer.chunk_scores] == [found.chunk.text for found in alone.chunk_scores]


@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_with_one_chunk_are_the_plain_row(layout: str, system: str | None) -> None:
    engine, short = make_engine(layout=layout), A[:50]
    experts, plain = (
        engine.generate(QUESTION, [short], max_new_tokens=12, method=name, system=system)
        for name in ("experts", "plain")
    )
    assert experts.tokens == plain.tokens
    before, after, _ = _prompt(engine, system)
    assert list(plain.tokens) == _generated(engine, [*before, *engine.tokenize(short), *after], 12)


@pytest.mark.parametrize("experts", [1, 3])
def test_rows_of_experts_take_the_bytes_that_were_planned(experts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row without documents is padded to the length of the others."""
    engine = make_engine(method="experts", experts=experts)
    text, new_tokens = A[:128], 6  # two chunks of 64
    question = len(engine.tokenize(f"user: {QUESTION}\nassistant:"))
    limits = engine.outline([len(text)], question, new_tokens).limits
    planned = limits.appended_tokens(new_tokens) * engine.focus.parts.num_layers * engine.focus.bytes_per_layer
    taken, step = list[int](), PlainDecoding.step

    def noting(rows: PlainDecoding, tokens: Tensor) -> Tensor:
        logits = step(rows, tokens)
        taken.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in rows._cache.layers))
        return logits

    monkeypatch.setattr(PlainDecoding, "step", noting)
    answers = engine.generate([QUESTION] * 3, [text], max_new_tokens=new_tokens)
    assert {len(answer.tokens) for answer in answers} == {new_tokens}
    assert 0.9 * 3 * planned < max(taken) <= 3 * planned


@pytest.mark.parametrize("mixing", ["pced", "nbce"])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_experts_are_rows_of_the_plain_model(layout: str, mixing: str) -> None:
    """The slow way: every expert and the amateur alone, from scratch for each token, and the formulas in Python."""
    engine = make_engine(layout=layout, experts=3, mixing=mixing, method="experts")
    answer = engine.generate(QUESTION, [A, B, C], max_new_tokens=8)
    _, after, _ = _prompt(engine)
    read = [found for found in answer.chunk_scores if found.read]
    assert len(read) == 3
    relevance = [found.score - max(one.score for one in answer.chunk_scores) for found in read]
    local = engine.shared.tokenizer.prompt([{"role": "user", "content": QUESTION}], chat_template=True).row
    rows = [[*found.chunk.row, *after] for found in read]
    tokens, slow = list[int](), {"pced": _SlowPced, "nbce": _SlowNbce}[mixing](relevance)
    for _ in range(len(answer.tokens)):
        logits = [engine.focus.model(torch.tensor([[*row, *tokens]])).logits[0, -1] for row in (*rows, local)]
        tokens.append(slow.choose(logits[:-1], logits[-1]))
    assert tokens == list(answer.tokens)


class _SlowPced:
    def __init__(self, relevance: list[float]) -> None:
        self._relevance, self._betas = relevance, list[list[float]]()

    def choose(self, experts: list[Tensor], amateur: Tensor) -> int:
        if not self._betas:
            p = amateur.softmax(-1).tolist()
            for expert in experts:
                q = expert.softmax(-1).tolist()
                self._betas.append([self._beta(a, b) for a, b in zip(p, q, strict=True)])
        best, token = -math.inf, 0
        for expert, betas, relevance in zip(experts, self._betas, self._relevance, strict=True):
            values = [(1 + b) * e - b * a for b, e, a in zip(betas, expert.tolist(), amateur.tolist(), strict=True)]
            if max(values) + 2.5 * relevance > best:
                best, token = max(values) + 2.5 * relevance, values.index(max(values))
        return token

    @staticmethod
    def _beta(p: float, q: float) -> float:
        middle = (p + q) / 2
        return min(max(0.5 * (p * math.log(p / middle) + q * math.log(q / middle)), 0), 1)


class _SlowNbce:
    def __init__(self, relevance: list[float]) -> None:
        self._last: int | None = None

    def choose(self, experts: list[Tensor], amateur: Tensor) -> int:
        kept = [self._nucleus(expert) for expert in experts]
        entropies = [-sum(math.exp(value) * value for value in row.values()) for row in kept]
        if self._last is not None:
            entropies[self._last] -= 0.1
        self._last = entropies.index(min(entropies))
        row, absent = kept[self._last], self._nucleus(amateur)
        merged = {
            token: 1.25 * value - 0.25 * absent[token] if token in absent else value for token, value in row.items()
        }
        return max(merged, key=lambda token: merged[token])

    @staticmethod
    def _nucleus(logits: Tensor) -> dict[int, float]:
        values = logits.log_softmax(-1).tolist()
        kept, taken = dict[int, float](), 0.0
        for token in sorted(range(len(values)), key=lambda index: -values[index]):
            if taken >= 0.95:
                break
            kept[token] = values[token]
            taken += math.exp(values[token])
        return kept


def test_contrast_is_the_share_of_each_token_in_the_divergence() -> None:
    """Jensen–Shannon, which is at most log 2."""
    amateur, expert = torch.randn(5, generator=torch.Generator().manual_seed(0)), torch.tensor([9.0, 0, 0, 0, -99])
    weights = contrast_weights(expert, amateur)
    p, q = amateur.softmax(-1), expert.softmax(-1)
    middle = (p + q) / 2
    divergence = 0.5 * sum(float((x * (x / middle).log()).nansum()) for x in (p, q))
    assert float(weights.min()) >= 0
    assert float(weights.sum()) >= divergence - 1e-6  # negative shares are set to 0
    assert torch.equal(contrast_weights(amateur, amateur), torch.zeros(5))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20))
def test_a_nucleus_is_the_fewest_tokens_that_make_it_up(values: list[float]) -> None:
    log_probs = torch.tensor([values]).log_softmax(-1)
    kept = nucleus(log_probs)[0]
    chosen = kept.isfinite()
    assert float(kept[chosen].exp().sum()) >= 0.95 - 1e-5
    least = float(kept[chosen].exp().sum() - kept[chosen].exp().min())
    assert least < 0.95 + 1e-5


def test_a_mixing_forgets_and_takes_in_questions() -> None:
    generator = torch.Generator().manual_seed(1)
    experts, amateur = torch.randn(3, 4, 7, generator=generator), torch.randn(3, 7, generator=generator)
    for kind in (Pced, Nbce):
        alone = []
        for question in range(3):
            mixing = kind(torch.zeros(1, 4))
            one = experts[question : question + 1], amateur[question : question + 1]
            alone.append((mixing.mix(*one), mixing.mix(*(part.flip(-1) for part in one))))
        together = kind(torch.zeros(2, 4))
        torch.testing.assert_close(together.mix(experts[:2], amateur[:2])[1:], alone[1][0])
        other = kind(torch.zeros(1, 4))
        other.mix(experts[2:], amateur[2:])
        together.keep([1])
        together.join(other)  # type: ignore[arg-type]
        mixed = together.mix(experts[1:].flip(-1), amateur[1:].flip(-1))
        torch.testing.assert_close(mixed, torch.cat([alone[1][1], alone[2][1]]))


def test_auto_takes_select_without_an_adapter_and_says_so() -> None:
    engine = make_engine(trained=False, layout="chat")
    with pytest.warns(match="no adapter is loaded, so method 'select' answers"):
        assert engine.generate(QUESTION, [A], max_new_tokens=2).method == "select"
    assert make_engine(trained=False, plain_up_to=None).generate(QUESTION, [A], max_new_tokens=2).method == "plain"
    assert make_engine(layout="chat").generate(QUESTION, [A], max_new_tokens=2).method == "focus"


def test_many_small_documents_are_packed() -> None:
    """They would fill the memory with a slot each; FocusLLM keeps its promise of a chunk for each."""
    texts = [f"Ticket {n}: {'ok' * (n % 3)}." for n in range(40)]
    engine = make_engine(layout="chat", trained=False)
    answer = engine.generate(QUESTION, texts, max_new_tokens=2, method="select")
    assert answer.usage.chunks < 15
    names = [part.document.text for found in answer.chunk_scores for part in found.chunk.document_parts]
    assert names == texts
    assert engine.generate(QUESTION, texts, max_new_tokens=2, method="focus").usage.chunks == 40
    packed = make_engine(layout="chat", pack=True)
    assert packed.generate(QUESTION, texts, max_new_tokens=2).usage.chunks == answer.usage.chunks


def test_a_long_prompt_is_selected_from_too() -> None:
    engine = make_engine(layout="chat", method="select", local_window=48)
    answer = engine.generate(A + B + C + " What is the end of it?", max_new_tokens=6)
    assert answer.method == "select"
    assert answer.usage.chunks == len(answer.chunk_scores) > 3
