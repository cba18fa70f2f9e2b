"""FocusLLM: answers from documents that are longer than a model's window (arXiv 2408.11745).

A text is cut into chunks (`chunking`); each is read once, alone, and its keys and values are kept (`model.prefill`,
`store`). The end of the question is appended to every chunk, and a candidate token in each condenses it
(`model.decode_candidates`). The candidates' keys and values are a memory in front of the question, behind which the
frozen decoder gives the next token (`model.next_token_logits`). `engine` is text in, text out.
"""

from typing import TYPE_CHECKING, Any

from focus_core.config import FocusConfig, SamplingConfig
from focus_core.errors import (
    AdapterError,
    ConfigError,
    ContextOverflowError,
    DocumentError,
    FocusError,
    OutOfMemoryError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from focus_core.attention.memory import Memory
    from focus_core.cache.chunks import ChunkCache
    from focus_core.engine.engine import Answer, FocusEngine, Piece, Usage
    from focus_core.loading.adapters import save_adapter
    from focus_core.methods.focus import FocusModel, TokenGeneration
    from focus_core.text.files import PreparedDocuments, read_file, read_folder
else:
    # Importing torch takes seconds, so it waits until a name is asked for that needs it: `focusllm --help` is instant.
    _MODULES = {
        "attention.memory": ("Memory",),
        "loading.adapters": ("save_adapter",),
        "cache.chunks": ("ChunkCache",),
        "text.files": ("PreparedDocuments", "read_file", "read_folder"),
        "engine.engine": ("Answer", "FocusEngine", "Piece", "Usage"),
        "methods.focus": ("FocusModel", "TokenGeneration"),
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
    "ChunkCache",
    "ConfigError",
    "ContextOverflowError",
    "DocumentError",
    "FocusConfig",
    "FocusEngine",
    "FocusError",
    "FocusModel",
    "Memory",
    "OutOfMemoryError",
    "Piece",
    "PreparedDocuments",
    "SamplingConfig",
    "TokenGeneration",
    "UnsupportedModelError",
    "Usage",
    "__version__",
    "read_file",
    "read_folder",
    "save_adapter",
]
