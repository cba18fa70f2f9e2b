"""Models with arguments bound to them: what is bound holds for every way to ask."""

from __future__ import annotations

from functools import partial
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable, RunnableBinding

from focus_integrations.langchain.structured import structured_output

_ASKING = ("generate", "agenerate", "generate_prompt", "agenerate_prompt")


class BoundModel(RunnableBinding[LanguageModelInput, Any]):
    """What `bind` returns. LangChain's own binding hands its arguments to `invoke` and its kin only.

    Through the model's other methods the documents would be lost, and the answer made up.
    """

    @classmethod
    def lc_id(cls) -> list[str]:
        """As LangChain's binding in traces and dumps."""
        return [*cls.get_lc_namespace(), "RunnableBinding"]

    def __getattr__(self, name: str) -> Any:
        attribute = super().__getattr__(name)
        return partial(attribute, **self.kwargs) if name in _ASKING else attribute


class BoundChatModel(BoundModel):
    """A chat model with arguments bound."""

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: str = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **arguments: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """`ChatFocusLLM.with_structured_output`, with what is bound."""
        return structured_output(self, schema, method=method, include_raw=include_raw, **arguments)
