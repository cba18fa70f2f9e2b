"""Everything that knows the inside of a transformers model. An upgrade of transformers touches only this folder
and `chunk_cache.py`; `tests/test_transformers_contract.py` says what is leaned on."""
