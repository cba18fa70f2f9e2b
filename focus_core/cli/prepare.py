"""`focusllm prepare -d book.txt --store folder`: read documents now, and keep what was read for later questions."""

from __future__ import annotations

import time

import typer

from focus_core.cli import options
from focus_core.cli.loading import config_of, load_engine, read_documents, required_store


def prepare(
    document: options.Documents = None,
    store: options.Store = None,
    store_limit: options.StoreLimit = None,
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
    kv_dtype: options.KvDtype = None,
    setting: options.Setting = None,
) -> None:
    """Read documents into a store. After an interrupt the same command goes on where it was.

    What was read belongs to the model, its dtype, --chunk-size and --kv-dtype: ask with the same ones.
    """
    if not document:
        raise typer.BadParameter("name at least one file or folder.", param_hint="--document")
    folder = required_store(store)
    documents = read_documents(document)
    config = config_of(
        setting,
        chunk_size=chunk_size,
        dynamic_prompt=dynamic_prompt,
        parallel_chunks=parallel_chunks,
        layout=layout,
        kv_dtype=kv_dtype,
    )
    engine = load_engine(
        model, gguf_file, adapter, device, dtype, config=config, method=method, store=folder, store_limit=store_limit
    )
    start = time.perf_counter()
    prepared = engine.prepare(documents)
    if prepared.chunks:
        plural = "s" if len(prepared) != 1 else ""
        typer.echo(
            f"{len(prepared)} document{plural}, {prepared.tokens:,} tokens in {len(prepared.chunks):,} chunks: "
            f"{prepared.tokens_read:,} tokens read in {time.perf_counter() - start:,.1f} s, the others were there."
        )
