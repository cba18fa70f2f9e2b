"""Workflows and trees: LlamaIndex hands the model around, and asks it in an event loop of its own."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core import TreeIndex
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from workflows.context import PickleSerializer

from focus_core import FocusEngine
from focus_integrations.llama_index import FocusLLM
from tests.integrations.conformance import DOCUMENTS, QUESTION, TOKENS
from tests.integrations.llama_index.drivers import nodes_of
from tests.integrations.spies import EngineCall, Spy, count_steps


@pytest.fixture
def llm(tiny_settings: dict[str, Any]) -> FocusLLM:
    return FocusLLM(**tiny_settings)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[EngineCall]:
    return Spy(monkeypatch).calls


class Token(Event):  # type: ignore[misc]  # LlamaIndex's workflows have no types
    piece: str


class Answering(Workflow):
    """The model comes with the event that starts the workflow."""

    @step
    async def answer(self, context: Context, start: StartEvent) -> StopEvent:
        text = ""
        async for response in await start.llm.astream_complete(QUESTION, documents=DOCUMENTS):
            text = response.text
            context.write_event_to_stream(Token(piece=response.delta))
        return StopEvent(result=text)


async def test_a_workflow_takes_the_model_along_and_streams_while_it_answers(
    llm: FocusLLM, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its events are copied, locks and all, where they can be; and its reader sees nothing while a step blocks."""
    expected = engine.generate(QUESTION, DOCUMENTS, max_new_tokens=TOKENS).text
    steps = count_steps(monkeypatch, seconds=0.02)
    run = Answering().run(llm=llm)
    pieces: list[str] = []
    taken: list[int] = []
    async for event in run.stream_events():
        if isinstance(event, Token):
            pieces.append(event.piece)
            taken.append(len(steps))
    assert await run == "".join(pieces) == expected
    assert taken[1] < TOKENS // 2


async def test_the_state_of_a_workflow_keeps_the_model(llm: FocusLLM) -> None:
    """A context is stored between two runs."""
    flow = Answering()
    context = Context(flow)
    await context.store.set("llm", llm)
    state = context.to_dict(serializer=PickleSerializer())
    again = await Context.from_dict(flow, state, serializer=PickleSerializer()).store.get("llm")
    assert again.engine is llm.engine
    assert again.to_dict() == llm.to_dict()


@pytest.mark.parametrize(
    "use_async",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.xfail(
                strict=True, raises=AssertionError, reason="LlamaIndex keeps the first letter of what a model says"
            ),
        ),
    ],
)
def test_a_tree_is_built_of_whole_summaries(llm: FocusLLM, calls: list[EngineCall], use_async: bool) -> None:
    """Each level sums up the answers of the level below. (The day that the second case passes, the docs lose a row.)"""
    passages = [f"Passage {number}. " for number in range(8)]
    leaves = [hit.node for hit in nodes_of(*passages)]
    tree = TreeIndex(leaves, llm=llm, num_children=2, use_async=use_async)
    summaries = [node.get_content() for node in tree.docstore.docs.values()][len(passages) :]
    assert [len(summary) for summary in summaries] == [TOKENS] * 6
    asked_about = [*_pairs(passages), *_pairs(summaries[:4])]
    for call, parts in zip(calls, asked_about, strict=True):
        assert all(part.strip() in call.question for part in parts)


def _pairs(texts: list[str]) -> list[list[str]]:
    return [texts[start : start + 2] for start in range(0, len(texts), 2)]
