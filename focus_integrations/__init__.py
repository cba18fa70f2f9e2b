"""FocusLLM in LangChain and LlamaIndex."""
