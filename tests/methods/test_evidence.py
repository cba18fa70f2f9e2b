"""What an answer owes to parts of the text, against everything computed again without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from focus_core.cache.chunks import ChunkRow, ChunkSet
from focus_core.config import FocusConfig
from focus_core.methods.base import ChunkScore, Method, TokenizedQuestion
from focus_core.methods.evidence import NOTHING, Evidence, LeftOut, Passage, tokens_left
from focus_core.methods.experts import ExpertsMethod
from focus_core.methods.focus import FocusModel
from focus_core.methods.focus_method import FocusMethod
from focus_core.methods.mixing import MIXINGS
from focus_core.methods.plain import PlainMethod
from focus_core.methods.select import SelectMethod
from focus_core.text.chunking import Chunk
from focus_core.text.documents import TokenizedDocument
from focus_core.text.layout import Layout, Prompt
from tests.model_zoo import BOS, FAMILIES_BY_KIND, build, random_projections, random_tokens
from tests.reference import Reference

TOLERANCE = 1e-5
LENGTHS = (24, 24, 17)
PADDING = 0  # no token of the texts
ANSWER = random_tokens(3, seed=9)
WHOLE = [Passage(chunk, 0, length) for chunk, length in enumerate(LENGTHS)]
PART = Passage(1, 5, 12)
LEFT_OUT: list[LeftOut] = [
    NOTHING,
    *(frozenset({passage}) for passage in WHOLE[1:]),
    frozenset(WHOLE),
    frozenset({WHOLE[0], WHOLE[2]}),
    frozenset({PART}),
    frozenset({PART, Passage(1, 20, 24), WHOLE[2]}),
]


def _focus(model: PreTrainedModel, **config: object) -> FocusModel:
    settings = {"chunk_size": 32, "local_window": 32, "dynamic_prompt": 9, **config}
    return FocusModel(model, random_projections(model), config=FocusConfig(**settings))  # type: ignore[arg-type]


def _question(model: FocusModel) -> TokenizedQuestion:
    """Three chunks of two documents, the second chunk at the end of the first document."""
    layout = Layout(model.config, BOS)
    texts = [TokenizedDocument.of_tokens(random_tokens(length, seed=length)) for length in (48, 17)]
    chunks = [
        Chunk(text.document, start, stop, None, list(text.token_ids[start:stop]), (BOS,))
        for text, start, stop in [(texts[0], 0, 24), (texts[0], 24, 48), (texts[1], 0, 17)]
    ]
    context = Prompt((BOS,), TokenizedDocument.of_tokens(random_tokens(14, seed=3)))
    return TokenizedQuestion(layout, tuple(texts), context, tuple(chunks), generated=tuple(ANSWER))


def _evidence(method: Method, question: TokenizedQuestion, read: Sequence[int] = ()) -> Evidence:
    scores = [ChunkScore(chunk, -1.0 - index, 0.1, index in read) for index, chunk in enumerate(question.chunks)]

    def chunks() -> ChunkSet:
        rows: dict[int, ChunkRow] = {}
        for read in method.prefill(question.chunks):
            rows |= read
        return ChunkSet.of([rows[index] for index in range(len(question.chunks))])

    return method.evidence(question, scores if read else (), chunks)


def _of_answer(logits: Sequence[Tensor]) -> Tensor:
    """The log-probability of each token of the answer."""
    return torch.stack([of.log_softmax(-1)[token] for of, token in zip(logits, ANSWER, strict=True)])


def _left(chunk: Chunk, index: int, left_out: LeftOut) -> list[int]:
    """Places of the tokens that stay."""
    gone = {place for one in left_out if one.chunk == index for place in range(one.start, one.stop)}
    return [place for place in range(len(chunk.token_ids)) if place not in gone]


class _WithoutSlots(Reference):
    """The oracle, with chunks that have no tokens left out of the memory; the others keep their slots."""

    @torch.no_grad()
    def without(self, question: TokenizedQuestion, left_out: LeftOut, generated: Sequence[int]) -> Tensor:
        asked, rows = question.asked, list[tuple[int, list[int]]]()
        for slot, chunk in enumerate(question.chunks):
            left = _left(chunk, slot, left_out)
            if left:
                rows.append((slot, [*chunk.opening, *(chunk.token_ids[place] for place in left)]))
        caches = [self._candidate([*row, *asked.dynamic_prompt, *generated], slot) for slot, row in rows]
        local = [*asked.local_context, *generated]
        memory = caches[0] if caches else None
        for layer in range(len(self._attentions()) if caches else 0):
            for cache in caches[1:]:
                memory.update(cache.layers[layer].keys, cache.layers[layer].values, layer)
        first = len(question.chunks)
        position_ids = torch.arange(first, first + len(local))[None]
        return self._run(self._frozen, local, past_key_values=memory, position_ids=position_ids)


@pytest.mark.parametrize("family", FAMILIES_BY_KIND)
def test_focus_is_the_oracle_without_the_slot(family: str) -> None:
    model = build(family)
    focus = _focus(model)
    question = _question(focus)
    reference = _WithoutSlots(model, focus.projections)
    found = _evidence(FocusMethod(focus), question).log_probs(LEFT_OUT)
    for log_probs, left_out in zip(found, LEFT_OUT, strict=True):
        slow = [reference.without(question, left_out, ANSWER[:target]) for target in range(len(ANSWER))]
        torch.testing.assert_close(log_probs, _of_answer(slow), atol=TOLERANCE, rtol=TOLERANCE)
    assert (found[1:] - found[0]).abs().amax(1).min() > 1e-2  # every part matters


@torch.no_grad()
def _plain_logits(model: PreTrainedModel, row: Sequence[int], places: Sequence[int]) -> Tensor:
    """One row through transformers, without the tokens that are left out, the others at their places."""
    ids = torch.tensor([[row[place] for place in places]])
    logits: Tensor = model(ids, position_ids=torch.tensor([places])).logits[0, -1]
    return logits


def _places(question: TokenizedQuestion, read: Sequence[int], left_out: LeftOut) -> tuple[list[int], list[int]]:
    """The row of some chunks, and the places of what stays in it, counted by hand."""
    row, places = [BOS], [0]
    for index in read:
        chunk = question.chunks[index]
        places += [len(row) + place for place in _left(chunk, index, left_out)]
        row += chunk.token_ids
    after = question.layout.after(question.context)
    return [*row, *after], [*places, *range(len(row), len(row) + len(after))]


@pytest.mark.parametrize("family", FAMILIES_BY_KIND)
@pytest.mark.parametrize("read", [(0, 1, 2), (0, 2)], ids=["plain", "select"])
def test_plain_and_select_are_the_row_without_the_tokens(family: str, read: tuple[int, ...]) -> None:
    model = build(family)
    focus = _focus(model)
    question = _question(focus)
    method = PlainMethod(focus) if len(read) == 3 else SelectMethod(focus)
    found = _evidence(method, question, read).log_probs(LEFT_OUT)
    for log_probs, left_out in zip(found, LEFT_OUT, strict=True):
        row, places = _places(question, read, left_out)
        slow = [
            _plain_logits(model, [*row, *ANSWER], [*places, *range(len(row), len(row) + target)])
            for target in range(len(ANSWER))
        ]
        torch.testing.assert_close(log_probs, _of_answer(slow), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("mixing", ["pced", "nbce"])
@pytest.mark.parametrize("family", FAMILIES_BY_KIND)
def test_experts_are_mixed_without_the_row(family: str, mixing: str) -> None:
    model = build(family)
    focus = _focus(model, mixing=mixing)
    question, read = _question(focus), (0, 1, 2)
    found = _evidence(ExpertsMethod(focus), question, read).log_probs(LEFT_OUT)
    after = question.layout.after(question.context)
    for log_probs, left_out in zip(found, LEFT_OUT, strict=True):
        rows = [(index, _left(question.chunks[index], index, left_out)) for index in read]
        rows = [(index, left) for index, left in rows if left]
        mixer, mixed = MIXINGS[mixing](torch.tensor([[-1.0 * index for index, _ in rows or [(0, ())]]])), list[Tensor]()
        for target in range(len(ANSWER)):
            logits = []
            for index, left in rows:
                row = [*question.chunks[index].row, *after]
                places = [0, *(1 + place for place in left), *range(len(row) - len(after), len(row) + target)]
                logits.append(_plain_logits(model, [*row, *ANSWER], places))
            local = [*question.context.row, *ANSWER[:target]]
            amateur = _plain_logits(model, local, range(len(local)))
            mixed.append(mixer.mix(torch.stack(logits)[None], amateur[None])[0] if logits else amateur)
        slow = _of_answer(mixed).clamp(min=-50)
        torch.testing.assert_close(log_probs, slow, atol=TOLERANCE, rtol=TOLERANCE)


METHODS = {"focus": FocusMethod, "plain": PlainMethod, "select": SelectMethod, "experts": ExpertsMethod}


@pytest.mark.parametrize("name", METHODS)
def test_batching_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    focus = _focus(build("llama"))
    question, read = _question(focus), () if name in ("focus", "plain") else (0, 1, 2)
    together = _evidence(METHODS[name](focus), question, read).log_probs(LEFT_OUT)
    monkeypatch.setattr(FocusModel, "tokens_per_pass", 1)
    alone = _evidence(METHODS[name](focus), question, read)
    reverse = torch.cat([alone.log_probs([one]) for one in reversed(LEFT_OUT)])
    torch.testing.assert_close(reverse.flip(0), together, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", METHODS)
def test_some_tokens_of_an_answer_are_those_of_all(name: str) -> None:
    focus = _focus(build("llama"))
    question, read = _question(focus), () if name in ("focus", "plain") else (0, 1, 2)
    everything = _evidence(METHODS[name](focus), question, read).log_probs(LEFT_OUT)
    for tokens in ([0], [1, len(ANSWER) - 1], list(range(len(ANSWER)))):
        some = _evidence(METHODS[name](focus), question, read).log_probs(LEFT_OUT, tokens)
        torch.testing.assert_close(some, everything[:, tokens], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("tokens", [None, [0], [0, 2]])
@pytest.mark.parametrize("name", METHODS)
def test_cost_is_what_passes_the_model(name: str, tokens: list[int] | None) -> None:
    focus = _focus(build("llama"))
    question, read = _question(focus), () if name in ("focus", "plain") else (0, 1, 2)
    evidence = _evidence(METHODS[name](focus), question, read)
    passed: list[int] = []
    embedding = focus.model.get_input_embeddings()  # the model that has candidates shares its weights, not its modules
    for module in [embedding, focus.candidate_model.get_input_embeddings()]:
        module.register_forward_pre_hook(lambda _, args: passed.append(int((args[0] != PADDING).sum())))
    for left_out in (LEFT_OUT[:-1], LEFT_OUT[:3]):
        passed.clear()
        cost = evidence.cost(left_out, tokens)
        evidence.log_probs(left_out, tokens)
        prefills = name == "focus" and len(left_out) > 3  # once, and no part of the cost
        own_chunks = sum(length + 1 for length in LENGTHS) if prefills else 0
        assert sum(passed) == cost.tokens + own_chunks
        assert cost.tokens > 0 or name == "experts"


def test_a_chunk_left_out_whole_is_not_gone_through() -> None:
    """A thousand chunks of 2,048 tokens took 1.4 seconds, during which no other answer went on."""

    class Unread(list[int]):
        def __iter__(self) -> Iterator[int]:
            raise AssertionError

    assert tokens_left(Unread([7, 8, 9]), [Passage(0, 1, 2), Passage(0, 0, 3)]) == []
    assert tokens_left([7, 8, 9], [Passage(0, 0, 2)]) == [9]
