"""Settings and reports that the language model and the chat model share."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import LangSmithParams
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

from focus_core import Answer, Finished, Usage
from focus_integrations.langchain.documents import CARRIERS, whole_documents_of
from focus_integrations.settings import Call, FocusSettings

PROVIDER = "focusllm"


class LangChainSettings(FocusSettings):
    """Fields of both models."""

    def call_with(self, given: dict[str, Any], stop: list[str] | None) -> Call:
        """One call's settings; `documents` may be LangChain's, and those of a chain are read after them."""
        carried = [given[name] for name in CARRIERS if given.get(name) is not None]
        documents = [document for documents in carried for document in whole_documents_of(documents)]
        others = {name: value for name, value in given.items() if name not in CARRIERS}
        return self.call({**others, "documents": documents}, stop)

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


def answer_metadata(end: Answer | Finished) -> dict[str, str]:
    """Why an answer ended, and the method that gave it."""
    return {"finish_reason": end.finish_reason, "method": end.method}
