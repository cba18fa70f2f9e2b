"""Keys and values of training's chunks in a folder: a chunk that comes again is loaded, not read again.

They depend on nothing that learns, so that the same files serve every epoch and every run with the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from focus_core.cache.chunk_file import ChunkHeader
from focus_core.cache.chunks import ChunkBlock, ChunkRow
from focus_core.cache.disk import DiskTier
from focus_core.cache.keys import ChunkKey, chunk_key
from focus_core.loading.fingerprint import SOFTWARE, key_in_memory
from focus_core.methods.focus import FocusModel
from focus_core.text.documents import TokenIds


class KeptChunks:
    """Prefills chunks, those that the folder does not hold.

    Args:
        folder: made if it is not there; runs with the same and with other models may share it
        computed_in: the mixed precision of the passes, which the states depend on
        limit: bytes of the folder; by default half of the disk that is free without it

    Raises:
        ConfigError: the folder cannot be made or read
    """

    def __init__(self, folder: Path, model: FocusModel, *, computed_in: str = "no", limit: int | None = None) -> None:
        self._model = model
        key = key_in_memory(model.model, computed_in)
        self._files = DiskTier(folder, key, states=model.state_shape, software=SOFTWARE, limit=limit)

    def prefill(self, chunks: Sequence[TokenIds], *, layers: int) -> list[ChunkRow]:
        """Block and row of each chunk, in order, with the keys and values of so many layers at least."""
        keys = [chunk_key(chunk, None) for chunk in chunks]
        tokens = dict(zip(keys, chunks, strict=True))
        rows = dict[ChunkKey, ChunkRow]()
        self._example = _Example()  # the chunks of the one before may give way now
        absent = self._files.touch(self._example, keys)
        there = [key for key in tokens if key not in absent]
        found = self._files.find(there, tokens.__getitem__, layers=layers)
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


class _Example:
    """As long as it is held, its chunks stay."""
