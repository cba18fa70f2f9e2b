"""A chain that hands over whole documents, in the place of `create_stuff_documents_chain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import LanguageModelLike
from langchain_core.output_parsers import BaseOutputParser, StrOutputParser
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableBinding, RunnableLambda, RunnablePassthrough

from focus_core.errors import ConfigError
from focus_integrations.langchain.base import LangChainSettings
from focus_integrations.langchain.documents import whole_documents_of


def create_focus_documents_chain(
    llm: LanguageModelLike,
    prompt: BasePromptTemplate[Any],
    *,
    document_variable_name: str = "context",
    document_prompt: BasePromptTemplate[str] | None = None,
    output_parser: BaseOutputParser[Any] | None = None,
) -> Runnable[dict[str, Any], Any]:
    """Same shape of call as the stuff chain: `{"context": documents, …}` in, the answer out; composes and streams.

    The documents go to the engine whole and beside the prompt, whatever their length; in the prompt, their variable
    (if it is there) stays empty.

    Args:
        llm: a `FocusLLM` or `ChatFocusLLM`, also with arguments bound
        document_variable_name: the key of the input that holds the documents
        document_prompt: formats a document for the model; by default its content alone

    Raises:
        ConfigError: `llm` is another model, or (when run) the input has no documents under that key
    """
    bare: Any = llm
    while isinstance(bare, RunnableBinding):
        bare = bare.bound
    if not isinstance(bare, LangChainSettings):
        raise ConfigError(
            f"llm is a {type(bare).__name__}, which cannot take whole documents. Give a FocusLLM or a ChatFocusLLM."
        )

    def with_documents(given: Mapping[str, Any]) -> Runnable[Any, Any]:
        if document_variable_name not in given:
            raise ConfigError(f"No documents: the input has {sorted(given)}, not {document_variable_name!r}.")
        documents = whole_documents_of(given[document_variable_name], document_prompt)
        emptied = RunnablePassthrough.assign(
            **{document_variable_name: _nothing}
        )  # The chain's input overrides `prompt.partial`.
        return emptied | prompt | llm.bind(documents=documents) | (output_parser or StrOutputParser())

    return RunnableLambda(with_documents).with_config(run_name="focus_documents_chain")


def _nothing(_: object) -> str:
    return ""
