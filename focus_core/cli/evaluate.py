"""`focusllm eval`: how often a model answers right, by every method and by its rivals."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from focus_core.cli import options
from focus_core.cli.loading import config_of, load_engine, read_documents
from focus_core.errors import ConfigError
from focus_core.progress import progress_bar, sign_of_life

if TYPE_CHECKING:
    from focus_core.engine.engine import FocusEngine
    from focus_core.evaluation.plan import Plan
    from focus_core.evaluation.trials import Run

_LENGTHS = (1_000, 4_000, 16_000)  # of look-ups
_WIDEST = 200  # columns of a table that goes to a file

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        help="Look-ups in made-up documents: passkey; fact: one stated fact; facts: one among 20 look-alikes; "
        "reworded: the same, in words that no training used; keys: one of many `key: value` lines; passage: 8 tokens "
        "continued. Reading, with --data: fairytale, squad. Default: all look-ups."
    ),
]
Data = Annotated[
    Path | None, typer.Option(metavar="FILE", help="JSON lines with texts and questions, for fairytale and squad.")
]
Arrange = Annotated[
    str | None,
    typer.Option(
        help="How the texts of --data become documents. single: the question's own text alone (default of fairytale); "
        "all: each text a document; joined: all texts as one document (default of squad)."
    ),
]
Lengths = Annotated[
    list[int] | None,
    typer.Option(min=256, help="About how long the documents of look-ups are. Default: 1000, 4000 and 16000."),
]
Contenders = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="With commas between: auto, focus, plain (all documents in the window) or another method; middle, end: "
        "the documents cut to the budget; bm25, minilm: top-k retrieval; gold: the passages with the answer; none: "
        "no documents; other: another text of the data. The first is what the others are compared with.",
    ),
]
Compare = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Show runs that were written with --out instead of making one; may be repeated."),
]


def evaluate(
    task: Tasks = None,
    data: Data = None,
    arrange: Arrange = None,
    tokens: Lengths = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Text to hide facts in. Default: generated sentences.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Per task and length.")] = 20,
    seed: Annotated[int, typer.Option(help="Of documents and questions.")] = 0,
    contenders: Contenders = "auto",
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of documents from which select, middle, end, bm25 and minilm answer. Default: what the window "
            "leaves.",
        ),
    ] = None,
    passage_tokens: Annotated[int, typer.Option(min=1, help="Longest passage of bm25 and minilm.")] = 256,
    embedder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Sentence encoder of minilm: a folder of all-MiniLM-L6-v2.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Words after every question. Default: the task's own.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens. Default: the task's own.")
    ] = None,
    at_once: Annotated[
        int,
        typer.Option(
            min=1,
            help="Questions about the same documents that are asked together: sooner done, but the seconds are then "
            "those of a group.",
        ),
    ] = 1,
    loss: Annotated[
        bool,
        typer.Option(
            "--loss",
            help="Also measure the loss of the first reference in place of each answer, nats a token: a pass more.",
        ),
    ] = False,
    model: options.Model = None,
    gguf_file: options.GgufFile = None,
    adapter: options.Adapter = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    chunk_size: options.ChunkSize = None,
    dynamic_prompt: options.DynamicPrompt = None,
    parallel_chunks: options.ParallelChunks = None,
    setting: options.Setting = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write every answer at once, as JSON lines; the same command goes on from them."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="NAME", help="Contender to compare with. Default: the first one.")
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Score to compare by. Default: f1 for reading, right for look-ups."),
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything as one JSON object.")] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the scores (.png, .svg, .pdf); needs the extra `eval`.")
    ] = None,
    compare: Compare = None,
) -> None:
    """Measure how well a model answers questions about documents: its methods, and what else could be done with it.

    Every run is seeded. Answers are greedy, and all contenders get the same questions in the same words.
    """
    _require_writable(out, report, picture)  # before hours of work
    with sign_of_life("starting"):
        from focus_core.evaluation.picture import require_drawable
        from focus_core.evaluation.plan import Plan
        from focus_core.evaluation.report import checked_against
        from focus_core.evaluation.tasks.table import LOOK_UPS
        from focus_core.evaluation.trials import Run, joined
    show = partial(_show, against=against, score=score, report=report, picture=picture)
    if compare:
        runs = joined({str(path): Run.read(path) for path in compare})
        show(runs)
        _say_what_differs(next(iter(runs.values())).conditions)
        return
    plan = Plan(
        tasks=tuple(task or LOOK_UPS),
        contenders=tuple(name.strip() for name in contenders.split(",")),
        questions=questions,
        seed=seed,
        lengths=tuple(tokens or _LENGTHS),
        texts=tuple(one.text or "" for one in read_documents(text or [])),
        data=data,
        arrange=arrange,
        budget=budget,
        passage_tokens=passage_tokens,
        embedder=embedder,
        instruction=instruction,
        max_new_tokens=max_new_tokens,
        at_once=at_once,
        loss=loss,
    )
    if score is not None:
        plan.require_score(score)
    if picture is not None:
        require_drawable(picture, plan.tasks)
    config = config_of(
        setting,
        chunk_size=chunk_size,
        dynamic_prompt=dynamic_prompt,
        parallel_chunks=parallel_chunks,
        select_tokens=budget,
    )
    engine = load_engine(model, gguf_file, adapter, device, dtype, config=config, progress=False)
    run = Run.start(plan.conditions(engine), out)
    if against is not None:
        checked_against(against, [*plan.contenders, *run.contenders])
    interrupted = _carried_out(engine, plan, run)
    if run.trials:
        show({str(out or "run"): run})
    if interrupted:
        kept = f"are in {out}, and the same command goes on from them" if out else "are not kept without --out"
        raise KeyboardInterrupt(f"Interrupted: the {len(run.trials)} answers so far {kept}.")


def _carried_out(engine: FocusEngine, plan: Plan, run: Run) -> bool:
    """Whether Ctrl-C ended it early."""
    from focus_core.evaluation.run import carry_out

    try:
        with progress_bar("answering") as progress:
            carry_out(engine, plan, run, report=progress)
    except KeyboardInterrupt:
        return True
    return False


def _show(
    runs: Mapping[str, Run], *, against: str | None, score: str | None, report: Path | None, picture: Path | None
) -> None:
    """Tables on standard output; a report and a picture where they are asked for."""
    from focus_core.evaluation.picture import draw
    from focus_core.evaluation.report import as_json, summarise, table

    rows = {name: summarise(run, against, score) for name, run in runs.items()}
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else _WIDEST, highlight=False)
    for name, found in rows.items():
        for task in dict.fromkeys(row.task for row in found):
            title = task if len(runs) == 1 else f"{task}, {name}"
            console.print(table([row for row in found if row.task == task], title=title))
    if report is not None:
        found_in = {name: as_json(run, rows[name]) for name, run in runs.items()}
        report.write_text(json.dumps(found_in, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if picture is not None:
        draw(rows, picture)


def _say_what_differs(conditions: Mapping[str, Any]) -> None:
    """Between the files that one table is made of."""
    from focus_core.evaluation.trials import DIFFERING

    for file, own in conditions.get(DIFFERING, {}).items():
        if own:
            typer.echo(f"{file}: {', '.join(f'{name} {value}' for name, value in own.items())}", err=True)


def _require_writable(*paths: Path | None) -> None:
    for path in paths:
        try:
            if path is not None:
                path.open("a", encoding="utf-8").close()
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error
