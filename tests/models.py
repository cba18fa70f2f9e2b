"""Real models for tests, from `make models`: a test that needs one is skipped, with the reason, where it is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.real_models import MODELS, model_path, models_folder


def needs_model(name: str) -> Callable[[Any], Any]:
    """Marks a test with `models`, and skips it unless the files of this model are there.

    Args:
        name: a key of `recipes.real_models.MODELS`
    """
    reason = f"{MODELS[name].path} is not in {models_folder()}; `make models` downloads it"
    skipped = pytest.mark.skipif(model_path(name) is None, reason=reason)
    return lambda test: pytest.mark.models(skipped(test))


def real_model(name: str) -> Path:
    """The file or folder of a model, for a test under `needs_model`."""
    path = model_path(name)
    assert path is not None
    return path
