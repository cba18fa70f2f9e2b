"""Training of candidate projections; the base model stays frozen (paper §3)."""
