"""`focusllm info`: how a model reads, and whether given documents fit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focus_core.cli import options
from focus_core.cli.loading import load_engine, read_documents
from focus_core.config import FocusConfig

if TYPE_CHECKING:
    from torch import nn

    from focus_core.engine.engine import FocusEngine
    from focus_core.engine.reading_plan import ReadingPlan

# Of a plan, what is printed as JSON.
_READING = (
    *("documents", "tokens", "method", "reason", "chunks", "cache_bytes", "prompt_bytes", "free_bytes"),
    *("positions_left", "answer_tokens", "fits"),
)


def info(
    document: options.Documents = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="One document of this length, instead of --document.")
    ] = None,
    model: options.Model = None,
    gguf_file: options.GgufFile = None,
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
    """Show how a model reads: window, chunks, memory per token, method; and whether documents fit."""
    if document and tokens:
        raise typer.BadParameter("give documents or a number of tokens, not both.", param_hint="--tokens")
    documents = read_documents(document or [])
    config = FocusConfig(chunk_size=chunk_size, dynamic_prompt=dynamic_prompt, layout=layout, kv_dtype=kv_dtype)
    engine = load_engine(model, gguf_file, adapter, device, dtype, config=config, method=method)
    described = _describe(engine)
    plan = engine.plan_lengths([tokens]) if tokens else engine.plan(documents, calibrate=False) if documents else None
    if as_json:
        typer.echo(json.dumps({**described, "reading": plan and {name: getattr(plan, name) for name in _READING}}))
        return
    for name, value in described.items():
        typer.echo(f"{name.replace('_', ' '):<24}{_shown(value)}")
    if plan is not None:
        typer.echo(f"\n{_explain(plan)}")


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
        "method_beyond_window": engine.outline([config.window]).method.name,
        "chunk_size": config.chunk_size,
        "local_window": config.local_window,
        "dynamic_prompt": config.dynamic_prompt,
        "layers": focus.parts.num_layers,
        "kv_heads": focus.parts.kv_heads,
        "weights_bytes": _nbytes(focus.model),
        "projections_bytes": _nbytes(focus.projections) if focus.trained else 0,
        "cache_bytes_per_token": focus.cache_bytes_per_token,
    }


def _nbytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _explain(plan: ReadingPlan) -> str:
    how = f"{plan.chunks:,} chunks" if plan.chunks else "one row with the question"
    plural = "s" if plan.documents > 1 else ""
    lines = [
        f"{plan.documents} document{plural}, {plan.tokens:,} tokens: {how}, method {plan.method}.",
        f"Method: {plan.reason}.",
        f"Keys and values take {_gib(plan.cache_bytes)}, and up to {_gib(plan.prompt_bytes)} for a question and "
        f"its answer, of {_gib(plan.free_bytes)} free.",
        f"The window leaves {max(plan.positions_left, 0):,} positions for question and answer.",
    ]
    if plan.lacking_bytes:
        lines.append(
            "It does not fit the memory. Use fewer documents, --kv-dtype int8, --dtype bfloat16 or a smaller model."
        )
    if not plan.answer_tokens:
        lines.append("It does not fit the window. Use fewer documents or a larger --chunk-size.")
    if plan.problem is not None and not plan.lacking_bytes and plan.answer_tokens:
        lines.append(f"It cannot be asked. {plan.problem}")  # the template has no place for documents
    return "\n".join([*lines, "It fits."] if plan.fits else lines)


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:,.2f} GiB"
