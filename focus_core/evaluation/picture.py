"""A run, or several, as a picture: the score of each contender with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from focus_core.errors import ConfigError
from focus_core.evaluation.report import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Runs = Mapping[str, Sequence[Row]]  # by file


def draw(runs: Runs, path: Path) -> None:
    """Write a picture of one task, in the format that the name of the file says.

    Several runs become lines over the number of chunks of the documents (the largest that a contender of the run had),
    one run with several lengths becomes lines over the lengths, any other one point for each contender.

    Raises:
        ConfigError: as `require_drawable`, or there is nothing to show
    """
    rows = [row for found in runs.values() for row in found if row.scores]
    tasks = list(dict.fromkeys(row.task for row in rows))
    require_drawable(path, tasks)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    if len(runs) > 1:
        _lines(axes, _over_chunks(runs), "chunks of the documents")
    elif len({row.tokens for row in rows}) > 1:
        _lines(axes, [(row.tokens or 0, row) for row in rows], "tokens of the documents")
    else:
        _points(axes, rows)
    axes.set_ylabel(f"{next(iter(rows[0].scores))} (%), 95 % interval")
    axes.set_title(tasks[0])
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def require_drawable(path: Path, tasks: Sequence[str]) -> None:
    """Refuse a picture before the work of many hours.

    Raises:
        ConfigError: matplotlib is not installed, it cannot write such a file, or there is not one task
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ConfigError("A picture needs matplotlib: pip install 'focusllm[eval]'.") from error
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".") not in formats:
        raise ConfigError(f"{path} is no name of a picture: its end may be {', '.join(formats)}.")
    if len(tasks) != 1:
        raise ConfigError(f"A picture shows one task, and there are {len(tasks)}: {', '.join(tasks) or 'no answers'}.")


def _over_chunks(runs: Runs) -> list[tuple[float, Row]]:
    placed = []
    for name, rows in runs.items():
        chunks = max((row.chunks or 0 for row in rows), default=0)
        if not chunks:
            raise ConfigError(f"{name}: no contender reads in chunks, so the run has no place in the picture.")
        placed += [(chunks, row) for row in rows if row.scores]
    return placed


def _lines(axes: Axes, placed: Sequence[tuple[float, Row]], label: str) -> None:
    for contender in dict.fromkeys(row.contender for _, row in placed):
        mine = [(place, row) for place, row in placed if row.contender == contender]
        found = sorted(mine, key=lambda pair: pair[0])
        axes.errorbar(
            [place for place, _ in found],
            [_mean(row) for _, row in found],
            yerr=_errors([row for _, row in found]),
            marker="o",
            capsize=3,
            label=contender,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(
        sorted({place for place, _ in placed}), [f"{place:,.0f}" for place in sorted({p for p, _ in placed})]
    )
    axes.set_xlabel(label)
    axes.legend()


def _points(axes: Axes, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    axes.errorbar(places, [_mean(row) for row in rows], yerr=_errors(rows), fmt="o", capsize=4)
    axes.set_xticks(places, [row.contender for row in rows])


def _mean(row: Row) -> float:
    return 100 * next(iter(row.scores.values()))


def _errors(rows: Sequence[Row]) -> list[list[float]]:
    """Distances of each mean to the ends of its interval, in percent."""
    lower = [_mean(row) - 100 * (row.low or 0.0) for row in rows]
    upper = [100 * (row.high or 0.0) - _mean(row) for row in rows]
    return [[max(one, 0.0) for one in lower], [max(one, 0.0) for one in upper]]
