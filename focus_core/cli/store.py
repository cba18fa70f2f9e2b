"""`focusllm store`: what a folder of prefilled chunks holds, whether it is sound, and how it gets smaller."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from focus_core.cli import options
from focus_core.cli.loading import parse_bytes, required_store
from focus_core.errors import ConfigError, shown_bytes
from focus_core.progress import progress_bar

app = typer.Typer(help="List, verify, prune or remove what `focusllm prepare` has kept.", no_args_is_help=True)


def store_folder(store: str | None) -> Path:
    """The folder of `--store` or of the environment, which must be there."""
    folder = Path(required_store(store))
    if not folder.is_dir():
        raise ConfigError(f"--store {store}: there is no such folder.")
    return folder


@app.command("ls")
def list_(store: options.Store = None, as_json: options.AsJson = False) -> None:
    """List documents: name, tokens, chunks that are there, size, last use."""
    from focus_core.cache.folder import FolderContent
    from focus_core.cache.listing import list_documents

    folder = store_folder(store)
    listed, content = list_documents(folder), FolderContent(folder)
    if as_json:
        documents = [
            {**asdict(one.document), "there": one.chunks, "nbytes": one.nbytes, "used": one.used} for one in listed
        ]
        typer.echo(json.dumps({"documents": documents, "nbytes": content.nbytes, "foreign": content.foreign}))
        return
    for one in listed:
        document, there = one.document, f"{one.chunks:,} of {len(set(one.document.chunks)):,} chunks"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
        typer.echo(
            f"{_printable(document.name)}  {document.tokens:,} tokens  {there}  {shown_bytes(one.nbytes)}  {used}  "
            f"{_printable(document.model_id)}"
        )
    typer.echo(
        f"{len(content.chunks):,} chunks, {shown_bytes(content.nbytes)} in all, "
        f"{shown_bytes(content.foreign)} of it other files."
    )


@app.command()
def verify(
    store: options.Store = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove what is damaged; it is read anew when needed.")
    ] = False,
) -> None:
    """Check every chunk: format, checksums, tokens. Exit code 1 if one is wrong and stays."""
    from focus_core.cache.folder import FolderContent
    from focus_core.cache.listing import verify_files

    paths = list(FolderContent(store_folder(store)).chunks)
    wrong = 0
    with progress_bar("verifying chunks") as progress:
        for number, (path, reason) in enumerate(verify_files(paths), 1):
            progress(number, len(paths))
            if reason is not None:
                wrong += 1
                typer.echo(f"{path}: {reason}")
                if remove:
                    path.unlink(missing_ok=True)
    typer.echo(f"{len(paths):,} chunks, {wrong:,} of them wrong{' and removed' if remove and wrong else ''}.")
    if wrong and not remove:
        raise typer.Exit(1)


@app.command()
def prune(
    store: options.Store = None,
    limit: Annotated[str | None, typer.Option(metavar="SIZE", help="Shrink the folder to this, as 20G.")] = None,
    unused: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Remove what was not used so long.")
    ] = None,
) -> None:
    """Remove the chunks that were not used for longest. Files of others stay."""
    from focus_core.cache import listing

    if limit is None and unused is None:
        raise typer.BadParameter("say how far: --limit SIZE or --unused DAYS.")
    freed = listing.prune(store_folder(store), limit=parse_bytes(limit), unused_days=unused)
    typer.echo(f"{shown_bytes(freed)} freed.")


@app.command("rm")
def remove(
    name: Annotated[list[str], typer.Argument(help="Names of documents, as `ls` shows them.", show_default=False)],
    store: options.Store = None,
) -> None:
    """Remove documents. Chunks that another document shares stay."""
    from focus_core.cache.listing import list_documents, remove_documents

    folder = store_folder(store)
    listed = list_documents(folder)
    for wanted in name:
        if all(one.document.name != wanted for one in listed):
            raise ConfigError(f"{wanted!r}: the store has no document of this name. `focusllm store ls` lists them.")
    gone = [one for one in listed if one.document.name in name]
    freed = remove_documents(folder, gone)
    typer.echo(f"{len(gone)} document{'s' if len(gone) != 1 else ''} removed, {shown_bytes(freed)} freed.")


def _printable(name: str) -> str:
    """In one line of a terminal, whatever somebody has called a file."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
