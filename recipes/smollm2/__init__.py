"""An adapter for SmolLM2-135M-Instruct: from its GGUF file and stories with questions, by one command that resumes."""
