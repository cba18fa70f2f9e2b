"""`focusllm plan -d book.txt "Who signed?"`: what the question will take, before anything is read."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from focus_core.cli import options
from focus_core.cli.loading import config_of, load_engine, read_documents


def plan(
    question: Annotated[
        str | None, typer.Argument(help="The question. Default: a short one.", show_default=False)
    ] = None,
    document: options.Documents = None,
    model: options.Model = None,
    gguf_file: options.GgufFile = None,
    adapter: options.Adapter = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    chunk_size: options.ChunkSize = None,
    dynamic_prompt: options.DynamicPrompt = None,
    parallel_chunks: options.ParallelChunks = None,
    method: options.Method = "auto",
    layout: options.LayoutName = None,
    select_tokens: options.SelectTokens = None,
    kv_dtype: options.KvDtype = None,
    setting: options.Setting = None,
    max_new_tokens: options.MaxNewTokens = None,
    system: options.System = None,
    store: options.Store = None,
    store_limit: options.StoreLimit = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what a question about documents will take: chunks and where they are, bytes, seconds; and whether it fits.

    Nothing of the documents is read. The machine is measured for about two seconds; while other programs keep it busy,
    the seconds are wrong.
    """
    if not document:
        raise typer.BadParameter("name at least one document.", param_hint="--document")
    documents = read_documents(document)
    config = config_of(
        setting,
        chunk_size=chunk_size,
        dynamic_prompt=dynamic_prompt,
        parallel_chunks=parallel_chunks,
        layout=layout,
        select_tokens=select_tokens,
        kv_dtype=kv_dtype,
    )
    engine = load_engine(
        model, gguf_file, adapter, device, dtype, config=config, method=method, store=store, store_limit=store_limit
    )
    planned = engine.plan(documents, question, system=system, max_new_tokens=max_new_tokens)
    if as_json:
        needed = {name: getattr(planned, name) for name in ("cache_bytes", "needed_bytes", "peak_bytes", "fits")}
        typer.echo(json.dumps({**asdict(planned), **needed}))
    else:
        typer.echo(str(planned))
