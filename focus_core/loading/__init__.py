"""Weights from disk and hub: models, adapters, the authors' checkpoints, and what tells them apart."""
