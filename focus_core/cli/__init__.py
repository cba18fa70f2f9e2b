"""The command line: `focusllm ask`, `info`, `train`, `eval`. See `app.py`."""

from focus_core.cli.app import app, main

__all__ = ["app", "main"]
