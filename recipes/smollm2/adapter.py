"""Runs that train an adapter for SmolLM2-135M-Instruct; the same command goes on with one that was stopped.

    make models
    python -m recipes.smollm2.adapter --data fairytale/ --output runs/smollm2
    python -m recipes.smollm2.adapter --data fairytale/ --output runs/smollm2 --cool-down 60

`--data` holds train.jsonl and val.jsonl of FairytaleQA, as `focusllm eval` reads them.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from focus_core.evaluation.tasks.records import read_records
from focus_core.loading.named import SMOLLM2, SMOLLM2_ADAPTER, smollm2_file
from focus_core.training.config import TrainingConfig
from focus_core.training.trainer import train
from recipes.smollm2 import data

_NOTES = (
    "Stories, questions and answers of FairytaleQA (Xu et al., 2022; Apache 2.0). Numbers that were planted in the "
    "stories and sentences with a word left out were made from its training part by `recipes/smollm2/data.py`."
)
_MORE_TEXTS = " Beside them, asked for in the same ways and by the words around them, the plain texts {names}."
_SIZES = {
    "chunk_sizes": (128, 256, 512),
    "max_chunks": 16,
    "max_documents": 6,
    "questions_per_example": 5,
    "targets_per_answer": 2,
    "local_lengths": (30, 2048),
    "dynamic_prompts": (64,),
}
_OTHERS = 24  # sections of other stories in each record of the wider run


def write_data(folder: Path, output: Path) -> tuple[list[Path], Path]:
    """The files that are trained, and the one that is held out, made anew if they are there."""
    train_stories, held_out = (read_records(folder / name) for name in ("train.jsonl", "val.jsonl"))
    made = {
        "questions.jsonl": data.questions(train_stories),
        "planted.jsonl": data.planted(train_stories, random.Random(1)),
        "cloze.jsonl": data.cloze(train_stories, random.Random(2)),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, records in made.items():
        data.write(output / name, records)
    data.write(output / "held_out.jsonl", data.questions(held_out))
    return [output / name for name in made], output / "held_out.jsonl"


def config_for(output: Path, files: Sequence[Path], held_out: Path, *, steps: int, rank: int) -> TrainingConfig:
    """The settings of the run."""
    return TrainingConfig(
        output=output / (f"rank{rank}" if rank else "full"),
        model=SMOLLM2,
        data=tuple(files),
        mixture={"questions.jsonl": 6, "planted.jsonl": 2, "cloze.jsonl": 2},
        validation=(held_out,),
        validation_examples=8,
        evaluate_every=100,
        save_every=25,
        log_every=5,
        rank=rank,
        steps=steps,
        learning_rate=1e-3 if rank else 3e-4,
        warm_up=20,
        final_share=0.1,
        betas=(0.9, 0.98),
        accumulation=1,
        mixed_precision="no",
        dtype="float32",
        layout="chat",
        license="apache-2.0",
        data_notes=_NOTES,
        **_SIZES,  # type: ignore[arg-type]
    )


def cooled(config: TrainingConfig, steps: int) -> TrainingConfig:
    """A run that goes on from the last adapter of another, at any of its steps."""
    name, seed = f"{config.output.name}_cooled", config.seed + 1
    return replace(_going_on(config, config.output / "adapter", name, steps), warm_up=5, seed=seed)


def _going_on(config: TrainingConfig, adapter: Path, name: str, steps: int) -> TrainingConfig:
    """A run of another name from an adapter, with a rate that falls to nothing."""
    return replace(
        config,
        output=config.output.with_name(name),
        adapter=str(adapter),
        rank=None,  # as the adapter has it
        steps=steps,
        evaluate_every=steps,
        learning_rate=config.learning_rate / 2,
        final_share=0.0,
    )


def write_wider_data(folder: Path, output: Path) -> list[Path]:
    """The files of the wider run: every record with sections of other stories between its own."""
    stories = read_records(folder / "train.jsonl")
    made = {
        "questions": data.questions(stories),
        "planted": data.planted(stories, random.Random(3)),
        "cloze": data.cloze(stories, random.Random(4)),
        "quoted": data.quoted(stories, random.Random(5)),
    }
    for name, records in made.items():
        data.write(output / f"wider_{name}.jsonl", data.among_others(records, random.Random(6), others=_OTHERS))
    return [output / f"wider_{name}.jsonl" for name in made]


def write_mixed_data(folder: Path, texts: Sequence[Path], output: Path) -> dict[Path, float]:
    """The files of the mixed run with their shares: what is asked of the stories, and of plain texts of other kinds."""
    stories = read_records(folder / "train.jsonl")
    parts = [part for path in texts for part in data.parts_of(path)]
    made = {
        "questions": (5.0, data.questions(stories)),
        "planted": (1.75, data.planted([*stories, *parts], random.Random(9))),
        "cloze": (1.75, data.cloze([*stories, *parts], random.Random(8))),
        "quoted": (1.5, data.quoted([*stories, *parts], random.Random(5))),
        "phrases": (3.0, data.phrases(parts, random.Random(7))),
    }
    for name, (_, records) in made.items():
        data.write(output / f"mixed_{name}.jsonl", records)
    return {output / f"mixed_{name}.jsonl": share for name, (share, _) in made.items()}


def mixed(
    config: TrainingConfig, shares: Mapping[Path, float], *, texts: Sequence[Path], steps: int, adapter: Path
) -> TrainingConfig:
    """A run that goes on from an adapter with texts of other kinds beside the stories, and more of each answer."""
    return replace(
        _going_on(config, adapter, "mixed", steps),
        data=tuple(shares),
        mixture={path.name: share for path, share in shares.items()},
        learning_rate=config.learning_rate,
        warm_up=10,
        seed=config.seed + 3,
        targets_per_answer=4,
        data_notes=config.data_notes + _MORE_TEXTS.format(names=", ".join(path.name for path in texts)),
    )


def wider(config: TrainingConfig, files: Sequence[Path], *, steps: int, adapter: Path) -> TrainingConfig:
    """A run that goes on from an adapter with up to 64 chunks, some of them of other stories."""
    return replace(
        _going_on(config, adapter, "wider", steps),
        data=tuple(files),
        mixture=dict(zip((path.name for path in files), (4, 2, 1, 3), strict=True)),
        warm_up=10,
        seed=config.seed + 2,
        chunk_sizes=(128, 256),
        max_chunks=64,
        max_documents=20,
        questions_per_example=4,
        targets_per_answer=3,
    )


def require_model(threads: int | None = None) -> None:
    """End with a sentence if SmolLM2 is not there; compute with so many threads, or all."""
    if smollm2_file() is None:
        raise SystemExit("SmolLM2 is not there. Fetch it with `make models`.")
    if threads:
        torch.set_num_threads(threads)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the data, and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and val.jsonl")
    parser.add_argument("--output", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rank", type=int, default=32, help="0: full copies")
    parser.add_argument("--cool-down", type=int, help="so many steps more, from a run that was stopped, as its end")
    parser.add_argument("--wider", type=int, help="so many steps from --adapter, with up to 64 chunks")
    parser.add_argument("--mixed", type=int, help="so many steps from --adapter, with --texts beside the stories")
    parser.add_argument("--texts", type=Path, nargs="+", help="plain texts of other kinds")
    parser.add_argument("--adapter", type=Path, default=SMOLLM2_ADAPTER, help="(default: that of the package)")
    given = parser.parse_args(arguments)
    require_model()
    files, held_out = write_data(given.data, given.output)
    config = config_for(given.output, files, held_out, steps=given.steps, rank=given.rank)
    if given.wider:
        more = write_wider_data(given.data, given.output)
        config = wider(config, more, steps=given.wider, adapter=given.adapter)
    elif given.mixed:
        if not given.texts:
            parser.error("--mixed needs --texts: files of plain text.")
        shares = write_mixed_data(given.data, given.texts, given.output)
        config = mixed(config, shares, texts=given.texts, steps=given.mixed, adapter=given.adapter)
    elif given.cool_down:
        config = cooled(config, given.cool_down)
    print(train(config))


if __name__ == "__main__":
    main()
