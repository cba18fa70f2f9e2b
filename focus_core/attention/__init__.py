"""Everything that knows the inside of a transformers model.

Besides, `decoding.py` uses transformers' cache for the plain model, and `sampling.py` its logits processors.
`tests/test_transformers_contract.py` says what is leaned on.
"""
