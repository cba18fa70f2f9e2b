"""FocusLLM for LlamaIndex: a language model and a response synthesizer that take whole documents.

`pip install 'focusllm[llama-index]'`; `docs/llama_index.md` shows everything.
"""

from typing import TYPE_CHECKING, Any

try:
    import llama_index.core as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "FocusLLM for LlamaIndex needs an extra. Install it: pip install 'focusllm[llama-index]'"
    ) from error

if TYPE_CHECKING:
    from focus_integrations.llama_index.events import FocusReadingEvent
    from focus_integrations.llama_index.llm import FocusLLM
    from focus_integrations.llama_index.postprocessor import WholeDocumentPostprocessor
    from focus_integrations.llama_index.synthesizer import FocusSynthesizer
else:
    _MODULE_OF = {
        "FocusLLM": "llm",
        "FocusReadingEvent": "events",
        "FocusSynthesizer": "synthesizer",
        "WholeDocumentPostprocessor": "postprocessor",
    }

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value


__all__ = ["FocusLLM", "FocusReadingEvent", "FocusSynthesizer", "WholeDocumentPostprocessor"]
