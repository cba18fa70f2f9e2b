"""`python -m focus_core.cli` is `focusllm`."""

from focus_core.cli import main

main()
