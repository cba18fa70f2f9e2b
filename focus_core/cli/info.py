"""`focusllm info`: how a model reads, and whether given documents fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focus_core.cli import options
from focus_core.cli.loading import load_engine, read_documents
from focus_core.config import FocusConfig
from focus_core.progress import sign_of_life

if TYPE_CHECKING:
    from torch import nn

    from focus_core.engine.engine import FocusEngine


@dataclass(frozen=True)
class Needs:
    """Memory and positions that documents take, and what they leave for a question.

    Attributes:
        method: the method that answers, as in `methods.table.METHODS`
        chunks: 0 where documents and question are read in one row
        cache_bytes: keys and values of the documents
        prompt_bytes: keys and values of one short question and its answer, of default length at most
        free_bytes: free memory of the device
        positions_left: positions that the window leaves for question and answer
        answer_tokens: tokens that the answer to a short question may have; 0 if none can be asked
    """

    documents: int
    tokens: int
    method: str
    chunks: int
    cache_bytes: int
    prompt_bytes: int
    free_bytes: int
    positions_left: int
    answer_tokens: int

    @property
    def needed_bytes(self) -> int:
        """All keys and values."""
        return self.cache_bytes + self.prompt_bytes

    @property
    def fits(self) -> bool:
        """Whether a short question can be asked."""
        return self.needed_bytes <= self.free_bytes and self.answer_tokens > 0


def info(
    document: options.Documents = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="One document of this length, instead of --document.")
    ] = None,
    model: options.Model = None,
    adapter: options.Adapter = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    chunk_size: options.ChunkSize = None,
    dynamic_prompt: options.DynamicPrompt = None,
    method: options.Method = "auto",
    layout: options.LayoutName = None,
    kv_dtype: options.KvDtype = None,
    as_json: options.AsJson = False,
) -> None:
    """Show how a model reads: window, chunks, memory per token; and whether documents fit."""
    if document and tokens:
        raise typer.BadParameter("give documents or a number of tokens, not both.", param_hint="--tokens")
    documents = read_documents(document or [])
    config = FocusConfig(chunk_size=chunk_size, dynamic_prompt=dynamic_prompt, layout=layout, kv_dtype=kv_dtype)
    engine = load_engine(model, adapter, device, dtype, config=config, method=method)
    with sign_of_life("counting tokens"):
        lengths = [tokens] if tokens else [engine.count_tokens(one.text or "") for one in documents]
    described = _describe(engine)
    needs = needs_of(engine, lengths) if lengths else None
    if as_json:
        found = None if needs is None else {**asdict(needs), "fits": needs.fits}
        typer.echo(json.dumps({**described, "reading": found}))
        return
    for name, value in described.items():
        typer.echo(f"{name.replace('_', ' '):<24}{_shown(value)}")
    if needs is not None:
        typer.echo(f"\n{_explain(needs)}")


def _describe(engine: FocusEngine) -> dict[str, Any]:
    loaded, focus, config = engine.shared.loaded, engine.focus, engine.config
    return {
        "model": loaded.model_id,
        "adapter": loaded.adapter_id,
        "device": str(focus.device),
        "dtype": str(focus.dtype).removeprefix("torch."),
        "kv_dtype": config.kv_dtype or str(focus.dtype).removeprefix("torch."),
        "layout": "chat" if engine.layout.in_turn else "raw",
        "window": config.window,
        "chunk_size": config.chunk_size,
        "local_window": config.local_window,
        "dynamic_prompt": config.dynamic_prompt,
        "layers": focus.parts.num_layers,
        "kv_heads": focus.parts.kv_heads,
        "weights_bytes": _nbytes(focus.model),
        "projections_bytes": _nbytes(focus.projections) if focus.trained else 0,
        "cache_bytes_per_token": focus.cache_bytes_per_token,
    }


def needs_of(engine: FocusEngine, lengths: Sequence[int]) -> Needs:
    """As the engine would answer a short question about documents of these numbers of tokens."""
    from focus_core.device import free_memory

    outline = engine.outline(lengths)
    unasked = engine.outline(lengths, question=0, method=outline.method.name)
    limits, method = outline.limits, outline.method
    appended = limits.appended_tokens(outline.new_tokens)
    in_row = 0 if outline.chunks else sum(lengths)  # of the appended tokens, those of the documents
    return Needs(
        documents=len(lengths),
        tokens=sum(lengths),
        method=method.name,
        chunks=outline.chunks,
        cache_bytes=method.chunk_bytes(outline.chunks, limits.chunk_tokens) + in_row * method.bytes_per_token,
        prompt_bytes=(appended - in_row) * method.bytes_per_token,
        free_bytes=free_memory(engine.focus.device),
        positions_left=unasked.limits.positions_left,
        answer_tokens=max(min(limits.positions_left, outline.new_tokens), 0),
    )


def _nbytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _explain(needs: Needs) -> str:
    how = f"{needs.chunks:,} chunks" if needs.chunks else "one row with the question"
    plural = "s" if needs.documents > 1 else ""
    lines = [
        f"{needs.documents} document{plural}, {needs.tokens:,} tokens: {how}, method {needs.method}.",
        f"Keys and values take {_gib(needs.cache_bytes)}, and up to {_gib(needs.prompt_bytes)} for a question and "
        f"its answer, of {_gib(needs.free_bytes)} free.",
        f"The window leaves {max(needs.positions_left, 0):,} positions for question and answer.",
    ]
    if needs.fits:
        return "\n".join([*lines, "It fits."])
    short = "memory" if needs.needed_bytes > needs.free_bytes else "window"
    way_out = {
        "memory": "Use fewer documents, --kv-dtype int8, --dtype bfloat16 or a smaller model.",
        "window": "Use fewer documents or a larger --chunk-size.",
    }
    return "\n".join([*lines, f"It does not fit the {short}. {way_out[short]}"])


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:,.2f} GiB"
