"""The commands put together, and what becomes of an error: one message, one exit code.

Exit codes: 0 done, 1 a `FocusError` or a file that cannot be read or written, 2 wrong usage, 130 Ctrl-C, 141 broken
pipe (SIGPIPE).
Commands import torch when they run, so that `focusllm --help` is quick.
"""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from focus_core import __version__
from focus_core.cli.ask import ask
from focus_core.cli.evaluate import evaluate
from focus_core.cli.info import info
from focus_core.cli.train import train
from focus_core.errors import FocusError, FocusWarning


class _Commands(TyperGroup):
    """Runs a command and turns what it raises into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FocusError as error:
            typer.secho(f"Error: {error}", err=True, fg="red")
            code = 1
        except KeyboardInterrupt as error:
            typer.echo(f"\n{str(error) or 'Interrupted.'}", err=True)
            code = 130
        except BrokenPipeError:
            _forget_output()
            code = 141
        except OSError as error:
            typer.secho(f"Error: {error.filename or 'The output'}: {error.strerror or error}.", err=True, fg="red")
            _forget_output()
            code = 1
        raise typer.Exit(code)


def _forget_output() -> None:
    """Python writes what is left when it ends, and would complain once more."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    cls=_Commands,
    help="Ask a local model about documents that are longer than its window (FocusLLM, arXiv 2408.11745).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(ask)
app.command()(info)
app.command()(train)
app.command("eval")(evaluate)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"focusllm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Our warnings in one line; those of other libraries as Python shows them."""
    if issubclass(category, FocusWarning):
        typer.echo(f"Note: {message}", err=True)
    else:
        _python_shows(message, category, *_, **__)


_python_shows = warnings.showwarning


def main() -> None:
    """Entry point of `focusllm`."""
    warnings.showwarning = _show_warning
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller, as in `2>&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # open to the end
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # an answer may hold what a terminal lacks
    app(prog_name="focusllm")
