"""Reading a sample of kept chunks anew, to see that what is kept is what the model computes."""

from __future__ import annotations

from dataclasses import dataclass

from focus_core.cache.chunks import ChunkRow, runs_of


@dataclass(frozen=True)
class Verification:
    """What `FocusEngine.verify` found.

    Attributes:
        chunks: that were read anew and compared
        missing: chunks of the sample that are not kept any more
        largest_difference: of a key or value to the one that was kept. Chunks that pass the model in other company are
            rounded differently: some 1e-5 of the largest value in float32; with `kv_dtype="int8"` now and then by a
            step, up to 1/127 of the largest value
        largest_value: of the keys and values that were compared
    """

    chunks: int
    missing: int
    largest_difference: float
    largest_value: float


def compare(kept: list[ChunkRow | None], read: list[ChunkRow]) -> Verification:
    """Compare chunks with the same chunks read anew; `None` for one that is not kept."""
    differences, values, missing = [0.0], [0.0], 0
    for stored, (block, row) in zip(kept, read, strict=True):
        if stored is None:
            missing += 1
            continue
        layers = min(block.layers, stored[0].layers)
        (anew,), (before,) = runs_of([(block, row)]), runs_of([stored])
        for layer in range(layers):
            for mine, theirs in zip(anew.layer(layer), before.layer(layer), strict=True):
                differences.append(float((mine.float() - theirs.float()).abs().max()))
                values.append(float(mine.float().abs().max()))
    return Verification(len(kept) - missing, missing, max(differences), max(values))
