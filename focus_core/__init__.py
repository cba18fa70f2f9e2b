"""FocusLLM: answers from documents that are longer than a model's window (arXiv 2408.11745).

A text is cut into chunks (`text`); each is read once, alone, and its keys and values are kept (`cache`). The end of the
question is appended to every chunk, a candidate token in each condenses it, and their keys and values are a memory from
which the frozen decoder gives the next token (`methods.focus`). `engine` is text in, text out.
"""

from typing import TYPE_CHECKING, Any

from focus_core.config import FocusConfig
from focus_core.errors import (
    AdapterError,
    AnswerError,
    ConfigError,
    ContextOverflowError,
    DocumentError,
    FocusError,
    FocusWarning,
    OutOfMemoryError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from focus_core.engine.answers import Answer, Finished, Piece, Usage
    from focus_core.engine.engine import FocusEngine
    from focus_core.engine.live import LiveEvidence
    from focus_core.engine.options import Options
    from focus_core.engine.prepared import PreparedDocuments
    from focus_core.engine.reading_plan import ReadingPlan
    from focus_core.engine.sources import Explanation, Source
    from focus_core.loading.adapters import save_adapter
    from focus_core.methods.focus import FocusModel
    from focus_core.progress import Reading
    from focus_core.text.documents import Document
    from focus_core.text.files import read_file, read_folder
else:
    # Importing torch takes seconds, so it waits until a name is asked for that needs it: `focusllm --help` is instant.
    _MODULES = {
        "engine.answers": ("Answer", "Finished", "Piece", "Usage"),
        "engine.engine": ("FocusEngine",),
        "engine.live": ("LiveEvidence",),
        "engine.options": ("Options",),
        "engine.prepared": ("PreparedDocuments",),
        "engine.reading_plan": ("ReadingPlan",),
        "engine.sources": ("Explanation", "Source"),
        "loading.adapters": ("save_adapter",),
        "methods.focus": ("FocusModel",),
        "progress": ("Reading",),
        "text.documents": ("Document",),
        "text.files": ("read_file", "read_folder"),
    }
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value


__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "Answer",
    "AnswerError",
    "ConfigError",
    "ContextOverflowError",
    "Document",
    "DocumentError",
    "Explanation",
    "Finished",
    "FocusConfig",
    "FocusEngine",
    "FocusError",
    "FocusModel",
    "FocusWarning",
    "LiveEvidence",
    "Options",
    "OutOfMemoryError",
    "Piece",
    "PreparedDocuments",
    "Reading",
    "ReadingPlan",
    "Source",
    "UnsupportedModelError",
    "Usage",
    "__version__",
    "read_file",
    "read_folder",
    "save_adapter",
]
