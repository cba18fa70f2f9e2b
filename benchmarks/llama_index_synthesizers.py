"""LlamaIndex's synthesizers and ours on the same engine, documents and questions: calls, tokens, seconds, answers.

    python -m benchmarks.llama_index_synthesizers                 20,000 tokens, four questions
    python -m benchmarks.llama_index_synthesizers --tokens 60000 --json result.json

Two sets of documents of the same length: one long document, and twelve. Stock synthesizers are measured twice: with
parts of the size that the model's own window has room for, as with any other local model, and with parts as large as
this engine takes; their prompts are bare, because the embedded model knows no instructions. Ours gets documents. The
store of read chunks is emptied before each row, and kept within a row, as in use.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_index.core import SummaryIndex, get_response_synthesizer
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMCompletionEndEvent
from llama_index.core.prompts import PromptTemplate
from llama_index.core.response_synthesizers import BaseSynthesizer, ResponseMode
from llama_index.core.schema import Document

from benchmarks import machine
from focus_core.evaluation.facts import Fact, filler_sentences, hide
from focus_integrations.llama_index import FocusLLM, FocusSynthesizer

FACTS = [
    Fact("access code", "the amber falcon", "48213"),
    Fact("home city", "Clara Fenwick", "Lisbon"),
    Fact("population", "Lake Marden", "90576"),
    Fact("serial number", "the silver anchor", "304187"),
]
DOCUMENTS = 12
MAX_TOKENS = 32
OURS = "FocusSynthesizer"

# The embedded model knows no instructions: with LlamaIndex's own prompts it gets hardly anything right.
ASK = PromptTemplate("{context_str}\n\n{query_str}")
REFINE = PromptTemplate("{existing_answer}\n\n{context_msg}\n\n{query_str}")


@dataclass(frozen=True)
class Row:
    """What a synthesizer took for all questions.

    Attributes:
        parts: how many tokens a prompt of LlamaIndex's may have; `None` where there are no parts
        given: tokens of all prompts and documents
        read: those of them that the model had to read
    """

    documents: int
    synthesizer: str
    parts: int | None
    calls: int
    given: int
    read: int
    seconds: float
    right: int
    questions: int


class Usages(BaseEventHandler):
    """Usage of every call of the model."""

    seen: list[dict[str, Any]] = []  # noqa: RUF012 (a pydantic field)

    @classmethod
    def class_name(cls) -> str:
        return "Usages"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent) and event.response is not None:
            self.seen.append(event.response.raw["usage"])


@contextmanager
def usages() -> Iterator[list[dict[str, Any]]]:
    root, handler = get_dispatcher(), Usages()
    root.add_event_handler(handler)
    try:
        yield handler.seen
    finally:
        root.event_handlers.remove(handler)


def documents_of(llm: FocusLLM, tokens: int, count: int, seed: int) -> list[Document]:
    """About `tokens` tokens in `count` documents, with one fact in some of them, or all facts in one."""
    rng = random.Random(seed)
    sample = filler_sentences(rng, 1000)
    sentences = filler_sentences(rng, round(tokens * 1000 / len(llm.tokenize(" ".join(sample)))))
    if count == 1:
        depths = [(number + 0.5) / len(FACTS) for number in range(len(FACTS))]
        return [Document(text=hide(FACTS, sentences, rng, depths).text, id_="0")]
    share, every = len(sentences) // count, count // len(FACTS)
    texts = []
    for number in range(count):
        facts = FACTS[number // every : number // every + 1] if number % every == every // 2 else []
        texts.append(hide(facts, sentences[number * share : (number + 1) * share], rng).text)
    return [Document(text=text, id_=str(number)) for number, text in enumerate(texts)]


def ways(llm: FocusLLM, index: SummaryIndex) -> list[tuple[str, int | None, BaseSynthesizer]]:
    """Name, size of a part, and the synthesizer."""
    bare = {"text_qa_template": ASK, "summary_template": ASK, "refine_template": REFINE}
    listed: list[tuple[str, int | None, BaseSynthesizer]] = []
    for name, mode in (("CompactAndRefine", "compact"), ("TreeSummarize", "tree_summarize")):
        for part in (llm.engine.config.window, llm.metadata.context_window):
            helper = PromptHelper(context_window=part, num_output=MAX_TOKENS, tokenizer=llm.tokenize)
            stock = get_response_synthesizer(llm=llm, prompt_helper=helper, response_mode=ResponseMode(mode), **bare)
            listed.append((name, part, stock))
    return [*listed, (OURS, None, FocusSynthesizer(llm, docstore=index.docstore))]


def measure(llm: FocusLLM, documents: Sequence[Document]) -> list[Row]:
    index = SummaryIndex.from_documents(documents)
    index.docstore.add_documents(documents)
    rows = []
    for name, parts, synthesizer in ways(llm, index):
        llm.engine.shared.store.clear()
        engine = index.as_query_engine(llm=llm, response_synthesizer=synthesizer)
        with usages() as seen:
            started = time.perf_counter()
            answers = [str(engine.query(f"What is the {fact.attribute} of {fact.entity}?")) for fact in FACTS]
            seconds = time.perf_counter() - started
        given = sum(usage["input_tokens"] for usage in seen)
        read = given - sum(usage["cache_read"] for usage in seen)
        right = sum(fact.value in answer for fact, answer in zip(FACTS, answers, strict=True))
        rows.append(Row(len(documents), name, parts, len(seen), given, read, seconds, right, len(FACTS)))
        print("  ".join(f"{name}: {value}" for name, value in asdict(rows[-1]).items()), flush=True)
        print("  ", answers, flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """For the documentation."""
    lines = ["| documents | synthesizer | parts of | calls | tokens given | of these read | seconds | right |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        parts = f"{row.parts:,} tokens" if row.parts else "whole documents"
        name = f"**{row.synthesizer}**" if row.synthesizer == OURS else row.synthesizer
        lines.append(
            f"| {row.documents} | {name} | {parts} | {row.calls} | {row.given:,} | {row.read:,} | {row.seconds:.1f} "
            f"| {row.right} of {row.questions} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000, help="of all documents together")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the figures go; by default they are printed")
    given = parser.parse_args()
    llm = FocusLLM(max_tokens=MAX_TOKENS)
    device, dtype = llm.engine.focus.device, llm.engine.focus.dtype
    rows = [row for count in (1, DOCUMENTS) for row in measure(llm, documents_of(llm, given.tokens, count, given.seed))]
    conditions = {**machine.conditions(device, dtype), "model": llm.model, "tokens": given.tokens, "seed": given.seed}
    output = json.dumps({"conditions": conditions, "rows": [asdict(row) for row in rows]}, indent=1)
    print(f"\n{table(rows)}\n")
    print("  ".join(f"{name}: {value}" for name, value in conditions.items() if value is not None))
    if given.json:
        given.json.write_text(output, encoding="utf-8")
    else:
        print(output)


if __name__ == "__main__":
    main()
