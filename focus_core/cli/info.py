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
from focus_core.methods.limits import room_for_answer, wished_or_room
from focus_core.progress import sign_of_life

if TYPE_CHECKING:
    from torch import nn

    from focus_core.engine.engine import FocusEngine

_SHORT_QUESTION = 32  # tokens, with its template


@dataclass(frozen=True)
class Needs:
    """What it takes to read documents.

    Attributes:
        chunks: 0 where the plain model reads everything
        cache_bytes: keys and values of the documents
        prompt_bytes: keys and values of one question and its answer behind every chunk, of default length at most
        free_bytes: what the device can still hold
        room: positions that the window leaves for question and answer
    """

    documents: int
    tokens: int
    chunks: int
    cache_bytes: int
    prompt_bytes: int
    free_bytes: int
    room: int

    @property
    def needed_bytes(self) -> int:
        """All keys and values."""
        return self.cache_bytes + self.prompt_bytes

    @property
    def fits(self) -> bool:
        """Whether a short question can be asked."""
        return self.needed_bytes <= self.free_bytes and self.room > _SHORT_QUESTION


def info(
    document: options.Documents = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="A document of so many tokens, instead of --document.")
    ] = None,
    model: options.Model = None,
    adapter: options.Adapter = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    chunk_size: options.ChunkSize = None,
    dynamic_prompt: options.DynamicPrompt = None,
    as_json: options.AsJson = False,
) -> None:
    """Show how a model reads: window, chunks, memory per token; and whether documents fit."""
    if document and tokens:
        raise typer.BadParameter("give documents or a number of tokens, not both.", param_hint="--tokens")
    texts = read_documents(document or [])
    config = FocusConfig(chunk_size=chunk_size, dynamic_prompt=dynamic_prompt)
    engine = load_engine(model, adapter, device, dtype, config=config)
    with sign_of_life("counting tokens"):
        lengths = [tokens] if tokens else [engine.count_tokens(text) for text in texts]
    described = _describe(engine)
    needs = _needs(engine, lengths) if lengths else None
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
        "window": config.window,
        "chunk_size": config.chunk_size,
        "local_window": config.local_window,
        "dynamic_prompt": config.dynamic_prompt,
        "layers": focus.parts.num_layers,
        "kv_heads": focus.parts.kv_heads,
        "weights_bytes": _nbytes(focus.model),
        "projections_bytes": _nbytes(focus.projections),
        "cache_bytes_per_token": focus.cache_bytes_per_token,
    }


def _needs(engine: FocusEngine, lengths: Sequence[int]) -> Needs:
    from focus_core.device import free_memory
    from focus_core.text.tokenizer import bos_of

    config, focus = engine.config, engine.focus
    tokens, bos, per_token = sum(lengths), int(bos_of(engine.tokenizer) is not None), focus.cache_bytes_per_token
    # As a question would be planned that takes little room itself.
    if config.reads_plainly(tokens + _SHORT_QUESTION, config.expected_answer):
        per_token = per_token // (focus.parts.num_layers - 1) * focus.parts.num_layers  # it keeps the last layer's, too
        left = config.window - tokens - _SHORT_QUESTION
        chunks, starts, behind = 0, bos, _SHORT_QUESTION + wished_or_room(None, left)
    else:
        chunks = sum(-(-length // config.chunk_size) for length in lengths)
        starts = bos * (chunks if config.bos_per_chunk else len(lengths))
        prompt, longest = config.dynamic_prompt + bos, min(max(lengths), config.chunk_size) + bos
        left = room_for_answer(config, chunks=chunks, longest=longest, prompt=prompt, local=_SHORT_QUESTION)
        behind = chunks * (prompt + wished_or_room(None, left))
    return Needs(
        documents=len(lengths),
        tokens=tokens,
        chunks=chunks,
        cache_bytes=(tokens + starts) * per_token,
        prompt_bytes=behind * per_token,
        free_bytes=free_memory(focus.device),
        room=config.window - (chunks or tokens),
    )


def _nbytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _explain(needs: Needs) -> str:
    how = f"{needs.chunks:,} chunks" if needs.chunks else "read whole by the plain model"
    plural = "s" if needs.documents > 1 else ""
    lines = [
        f"{needs.documents} document{plural}, {needs.tokens:,} tokens: {how}.",
        f"Keys and values take {_gib(needs.cache_bytes)}, and up to {_gib(needs.prompt_bytes)} for a question and "
        f"its answer, of {_gib(needs.free_bytes)} free.",
        f"The window leaves {max(needs.room, 0):,} positions for question and answer.",
    ]
    if needs.fits:
        return "\n".join([*lines, "It fits."])
    short = "memory" if needs.needed_bytes > needs.free_bytes else "window"
    way_out = {
        "memory": "Use fewer documents, --dtype bfloat16 or a smaller model.",
        "window": "Use fewer documents or a larger --chunk-size.",
    }
    return "\n".join([*lines, f"It does not fit the {short}. {way_out[short]}"])


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:,.2f} GiB"
