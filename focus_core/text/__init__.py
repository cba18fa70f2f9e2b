"""Strings and tokens: documents, chunks, chat templates, files, and answers on their way to text."""
