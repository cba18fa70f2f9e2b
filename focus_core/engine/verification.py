"""Reading a sample of kept chunks anew, to see that what is kept is what the model computes."""

from __future__ import annotations

from dataclasses import dataclass

from focus_core.cache.chunks import ChunkRow


@dataclass(frozen=True)
class Verification:
    """What `FocusEngine.verify` found.

    Attributes:
        chunks: that were read anew and compared
        missing: chunks of the sample that are not kept any more
        largest_difference: of a key or value to the one that was kept. Chunks that pass the model in other company are
            rounded differently: some 1e-5 of the largest value in float32
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
        for mine, theirs in ((block.keys, stored[0].keys), (block.values, stored[0].values)):
            anew, before = mine[:layers, row].float(), theirs[:layers, stored[1]].float()
            differences.append(float((anew - before).abs().max()))
            values.append(float(anew.abs().max()))
    return Verification(len(kept) - missing, missing, max(differences), max(values))
