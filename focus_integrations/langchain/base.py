"""Settings and reports that the language model and the chat model share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from langchain_core.language_models import LangSmithParams
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.content import Citation, TextContentBlock

from focus_core import Answer, Finished, Usage
from focus_core.engine.sources import Source
from focus_integrations.langchain.documents import CARRIERS, whole_documents_of
from focus_integrations.settings import Call, FocusSettings
from focus_integrations.sources import source_fields, sources_metadata

PROVIDER = "focusllm"


class LangChainSettings(FocusSettings):
    """Fields of both models."""

    _streaming_calls: ClassVar[str] = "stream() or astream()"

    def call_with(self, given: dict[str, Any], stop: list[str] | None, *, streamed: bool = False) -> Call:
        """One call's settings; `documents` may be LangChain's, and those of a chain are read after them."""
        carried = [given[name] for name in CARRIERS if given.get(name) is not None]
        documents = [document for documents in carried for document in whole_documents_of(documents)]
        others = {name: value for name, value in given.items() if name not in CARRIERS}
        return self.call({**others, "documents": documents}, stop, streamed=streamed)

    def with_names(self, traced: LangSmithParams, given: dict[str, Any]) -> LangSmithParams:
        """For LangSmith: who made the model, and which one it is."""
        traced["ls_provider"] = PROVIDER
        traced["ls_model_name"] = str(given.get("model", self.model))
        return traced

    def get_token_ids(self, text: str) -> list[int]:
        """The model's own tokens, without special ones."""
        return self.engine.tokenize(text)


def usage_metadata(usage: Usage) -> UsageMetadata:
    """Tokens in LangChain's words. `cache_read` are document tokens whose keys and values were there already."""
    return UsageMetadata(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cache_read, cache_creation=usage.cache_creation),
    )


def answer_metadata(end: Answer | Finished) -> dict[str, Any]:
    """Why an answer ended, the method that gave it, and its sources if they were asked for."""
    return {"finish_reason": end.finish_reason, "method": end.method, **sources_metadata(end)}


def cited_text(text: str, sources: Sequence[Source], *, length: int, index: int | None = None) -> TextContentBlock:
    """A text block with LangChain's standard citations, one for each source, the best first.

    Args:
        length: characters of the whole answer, which every citation is about
        index: of the block that pieces of a stream are put together in
    """
    block = TextContentBlock(type="text", text=text)
    if index is not None:
        block["index"] = index
    if sources:
        block["annotations"] = [_citation(source, length) for source in sources]
    return block


def _citation(source: Source, length: int) -> Citation:
    citation = Citation(
        type="citation",
        start_index=0,
        end_index=length,
        cited_text=source.excerpt,
        extras=source_fields(source),
    )
    if source.name:
        citation["title"] = source.name
    url = str(source.metadata.get("source", ""))
    if "://" in url:  # LangChain's loaders put paths there too
        citation["url"] = url
    return citation
