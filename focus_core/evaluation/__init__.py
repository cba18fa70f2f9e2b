"""Tasks with known answers, and how well a model does on them."""
