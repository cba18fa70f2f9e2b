"""FocusLLM for LangChain: a language model and a chat model that take whole documents.

`pip install 'focusllm[langchain]'`; `docs/langchain.md` shows everything.
"""

from typing import TYPE_CHECKING, Any

try:
    import langchain_core as _  # noqa: F401
except ImportError as error:
    raise ImportError("FocusLLM for LangChain needs an extra. Install it: pip install 'focusllm[langchain]'") from error

if TYPE_CHECKING:
    from focus_integrations.langchain.chains import create_focus_documents_chain
    from focus_integrations.langchain.chat_model import ChatFocusLLM
    from focus_integrations.langchain.documents import FocusPromptValue
    from focus_integrations.langchain.llm import FocusLLM
    from focus_integrations.langchain.readings import READING_EVENT
    from focus_integrations.langchain.retriever import WholeDocumentRetriever
else:
    _MODULE_OF = {
        "ChatFocusLLM": "chat_model",
        "FocusLLM": "llm",
        "FocusPromptValue": "documents",
        "READING_EVENT": "readings",
        "WholeDocumentRetriever": "retriever",
        "create_focus_documents_chain": "chains",
    }

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value


__all__ = [
    "READING_EVENT",
    "ChatFocusLLM",
    "FocusLLM",
    "FocusPromptValue",
    "WholeDocumentRetriever",
    "create_focus_documents_chain",
]
