"""FocusLLM: answers from documents that are longer than a model's window (arXiv 2408.11745)."""
