"""FocusLLM in the frameworks that people build pipelines with. The engine is `focus_core`; here is only translation.

`focus_integrations.langchain` and `focus_integrations.llama_index` each need the extra of their name. Importing this
package imports neither framework, nor torch.
"""
