"""`focusllm push`: an adapter on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focus_core.progress import sign_of_life


def push(
    adapter: Annotated[Path, typer.Argument(metavar="FOLDER", help="The adapter's folder.", show_default=False)],
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="Its id on the hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Of a repository that is made.")] = False,
) -> None:
    """Put an adapter on the Hugging Face hub, with its model card.

    Others then use it as `--adapter USER/NAME`. Only the adapter's own files are sent. Needs `hf auth login`.
    """
    with sign_of_life("starting"):
        from focus_core.loading.adapters import push_adapter
    with sign_of_life("sending"):
        address = push_adapter(adapter, name, private=private)
    typer.echo(address)
