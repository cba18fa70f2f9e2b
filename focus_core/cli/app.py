"""The commands put together. An error ends with one message and one exit code.

Exit codes: 0 done, 1 a `FocusError` or a file that cannot be read or written, 2 wrong usage, 130 Ctrl-C, 141 broken
pipe (SIGPIPE).
Commands import torch when they run, so that `focusllm --help` is quick.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from focus_core import __version__
from focus_core.cli.ask import ask
from focus_core.cli.evaluate import evaluate
from focus_core.cli.info import info
from focus_core.cli.plan import plan
from focus_core.cli.prepare import prepare
from focus_core.cli.push import push
from focus_core.cli.store import app as store_app
from focus_core.cli.train import train
from focus_core.errors import FocusError, FocusWarning


class _Commands(TyperGroup):
    """Runs a command and turns an error into a message and an exit code, and a warning into a note."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _notes():
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
            code = _failed(error)
        raise typer.Exit(code)


@contextmanager
def _notes() -> Iterator[None]:
    """Our warnings as a line of their own; those of other libraries as Python shows them."""
    with warnings.catch_warnings():
        python_shows = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, FocusWarning):
                typer.echo(f"Note: {message}", err=True)
            else:
                python_shows(message, category, *where, **options)

        warnings.showwarning = show
        yield


def _failed(error: OSError) -> int:
    """The message and the exit code for a file, or an output, that cannot be read or written."""
    with suppress(OSError):  # the place for messages may be full, too
        typer.secho(f"Error: {error.filename or 'The output'}: {error.strerror or error}.", err=True, fg="red")
    _forget_output()
    return 1


def _forget_output() -> None:
    """At its end Python writes the rest of the output, and would raise the same error again."""
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
app.command()(plan)
app.command()(prepare)
app.command()(train)
app.command()(push)
app.command("eval")(evaluate)
app.add_typer(store_app, name="store")


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


def main() -> None:
    """Entry point of `focusllm`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller, as in `2>&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # open to the end
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may lack some characters of an answer
    try:
        app(prog_name="focusllm")
    except OSError as error:  # of the help, which is written before a command runs
        sys.exit(_failed(error))
