"""How chunks become logits: one file for each method."""
