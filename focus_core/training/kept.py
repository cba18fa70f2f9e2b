"""Keys and values of training's chunks in a folder: a chunk that comes again is loaded, not read again.

They depend on nothing that learns, so that the same files serve every epoch and every run with the same model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from transformers import __version__ as transformers_version

from focus_core.cache.chunk_file import ChunkHeader
from focus_core.cache.chunks import ChunkBlock, ChunkRow
from focus_core.cache.disk import DiskTier
from focus_core.cache.keys import ChunkKey, chunk_key
from focus_core.loading.fingerprint import weights_fingerprint
from focus_core.methods.focus import FocusModel
from focus_core.text.documents import TokenIds


class KeptChunks:
    """Prefills chunks, those that the folder does not hold.

    Args:
        folder: made if it is not there; runs with the same and with other models may share it
        limit: bytes of the folder; by default half of the disk that is free without it

    Raises:
        ConfigError: the folder cannot be made or read
    """

    def __init__(self, folder: Path, model: FocusModel, *, limit: int | None = None) -> None:
        self._model = model
        software = f"transformers {transformers_version}"
        self._files = DiskTier(folder, _key_of(model), states=model.state_shape, software=software, limit=limit)

    def prefill(self, chunks: Sequence[TokenIds], *, layers: int) -> list[ChunkRow]:
        """Block and row of each chunk, in order, with the keys and values of so many layers at least."""
        keys = [chunk_key(chunk, None) for chunk in chunks]
        tokens = dict(zip(keys, chunks, strict=True))
        rows = dict[ChunkKey, ChunkRow]()
        self._files.begin(self, keys)
        found = self._files.find(tokens, tokens.__getitem__, layers=layers)
        for loaded in self._files.load(found, tokens.__getitem__, self._block):
            rows |= loaded
        self._files.warn_of_unusable()
        missing = [key for key in tokens if key not in rows]
        for read in self._model.prefill_passes([tokens[key] for key in missing], layers=layers):
            made = {missing[index]: row for index, row in read.items()}
            self._files.save(made, tokens.__getitem__)
            rows |= made
        return [rows[key] for key in keys]

    def _block(self, like: ChunkHeader, chunks: int) -> ChunkBlock:
        return like.block(chunks, self._model.device)


def _key_of(model: FocusModel) -> str:
    """What keys and values depend on besides a chunk's tokens."""
    config = model.model.config.get_text_config()
    parts = (weights_fingerprint(model.model, model.parts), str(model.dtype), config.to_dict())
    return sha256(json.dumps(("training", *parts), sort_keys=True, default=repr).encode()).hexdigest()
