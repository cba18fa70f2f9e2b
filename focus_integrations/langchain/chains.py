"""A chain that hands over whole documents, in the place of `create_stuff_documents_chain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.language_models import LanguageModelLike
from langchain_core.output_parsers import BaseOutputParser, StrOutputParser
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import DynamicRunnable, RunnableConfigurableAlternatives

from focus_core.errors import ConfigError, warn
from focus_integrations.langchain.base import LangChainSettings
from focus_integrations.langchain.documents import CONTEXT_DOCUMENTS, whole_documents_of

_SEPARATOR = "\n\n"  # LangChain's default


def create_focus_documents_chain(
    llm: LanguageModelLike,
    prompt: BasePromptTemplate[Any],
    *,
    document_variable_name: str = "context",
    document_prompt: BasePromptTemplate[str] | None = None,
    document_separator: str = _SEPARATOR,
    output_parser: BaseOutputParser[Any] | None = None,
) -> Runnable[dict[str, Any], Any]:
    """Same shape of call as the stuff chain: `{"context": documents, …}` in, the answer out; composes and streams.

    The documents go to the engine whole and beside the prompt, whatever their length; in the prompt, their variable
    (if it is there) stays empty. Documents that are bound to `llm` are read first.

    Args:
        llm: a `FocusLLM` or `ChatFocusLLM`, also with arguments bound, with retries, fallbacks or configurable fields
        document_variable_name: the key of the input that holds the documents
        document_prompt: formats a document for the model; by default its content alone
        document_separator: without effect, with a warning: the documents are not joined

    Raises:
        ConfigError: `llm` is or holds another model, or (when run) the input has no documents under that key
    """
    for model in _models(llm):
        if not isinstance(model, LangChainSettings):
            raise ConfigError(
                f"llm is or holds a {type(model).__name__}, which cannot take whole documents. Give a FocusLLM or a "
                "ChatFocusLLM. As a fallback, another model needs a chain of its own: "
                "create_focus_documents_chain(…).with_fallbacks([create_stuff_documents_chain(…)])."
            )
    if document_separator != _SEPARATOR:
        warn(f"document_separator={document_separator!r} has no effect: documents are read one by one, not joined.")

    def with_documents(given: Mapping[str, Any]) -> Runnable[Any, Any]:
        if document_variable_name not in given:
            raise ConfigError(f"No documents: the input has {sorted(given)}, not {document_variable_name!r}.")
        documents = whole_documents_of(given[document_variable_name], document_prompt)
        emptied = RunnablePassthrough.assign(
            **{document_variable_name: _nothing}
        )  # The chain's input overrides `prompt.partial`.
        # Of two arguments of one name the outer replaces the inner, also that of a `bind` far inside.
        asking = llm.bind(**{CONTEXT_DOCUMENTS: documents})
        return emptied | prompt | asking | (output_parser or StrOutputParser())

    return RunnableLambda(with_documents).with_config(run_name="focus_documents_chain")


def _models(llm: Any) -> Iterator[Any]:
    """Every model that may answer; alternatives that are made when they are needed are made once, to see them."""
    inside: list[Any]
    if isinstance(llm, RunnableBindingBase):  # arguments, settings, retries
        inside = [llm.bound]
    elif isinstance(llm, RunnableWithFallbacks):
        inside = [llm.runnable, *llm.fallbacks]
    elif isinstance(llm, RunnableConfigurableAlternatives):
        inside = [llm.default, *(one if isinstance(one, Runnable) else one() for one in llm.alternatives.values())]
    elif isinstance(llm, DynamicRunnable):
        inside = [llm.default]
    else:
        yield llm
        return
    for one in inside:
        yield from _models(one)


def _nothing(_: object) -> str:
    return ""
