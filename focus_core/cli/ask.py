"""`focusllm ask -d book.txt "Who signed?"`: the answer on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from focus_core.cli import options
from focus_core.cli.loading import config_of, load_engine, read_documents
from focus_core.engine.source_page import source_page
from focus_core.errors import ConfigError

if TYPE_CHECKING:
    from focus_core.engine.answers import Event, Finished
    from focus_core.engine.engine import FocusEngine
    from focus_core.engine.live import ChunkShare
    from focus_core.text.documents import Document

    Drawn = list[tuple[str, ChunkShare]]  # text of each piece, and the chunk that its tokens drew on most

_MOST_LINES = 8  # of chunks that an answer drew on
_SHOWN = 60  # characters of the answer in such a line


def ask(
    question: Annotated[str, typer.Argument(help="The question.", show_default=False)],
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
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Draw from the likeliest tokens that make up this share.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from this number of likeliest tokens; 0: from all.")] = 0,
    min_p: Annotated[
        float, typer.Option(min=0, max=1, help="Draw from tokens at least this share as likely as the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1, tokens of the question and of the answer become less likely.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="The same seed draws the same answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text; may be repeated.")
    ] = None,
    system: options.System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the question as it stands, no chat template.")] = False,
    store: options.Store = None,
    store_limit: options.StoreLimit = None,
    sources: Annotated[bool, typer.Option("--sources", help="Also say which passages the answer rests on.")] = False,
    live_evidence: Annotated[
        bool, typer.Option("--live-evidence", help="Also say which chunks the answer drew on while it was made.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write answer and sources to one page, for a browser.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Ask a question about documents of any length, or without documents.

    The answer comes on standard output as it is made.
    """
    if html is not None:
        _require_folder(html)
    documents = read_documents(document or [])
    clock = _Clock()
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
    clock.loaded()
    events = engine.stream(
        question,
        documents or None,
        system=system,
        chat_template=not raw,
        max_new_tokens=max_new_tokens,
        stop=stop or (),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        sources=sources or html is not None,
        live_evidence=live_evidence,
    )
    text, end, drawn = _collect(events, clock, show=not as_json)
    if html is not None:
        _write_page(html, question, text, documents, end)
    if live_evidence and not as_json:
        typer.echo(drawn_as_text(drawn, end.method), err=True)
    if sources and not as_json:
        typer.echo(sources_as_text(end))
    if as_json:
        found = _as_json(text, end, engine, clock)
        typer.echo(json.dumps({**found, "live_evidence": _drawn_as_json(drawn)} if live_evidence else found))
    elif sys.stderr.isatty():
        typer.secho(_footer(end, clock), err=True, dim=True)


def sources_as_text(end: Finished) -> str:
    """Sources, numbered, a line each; and whether the text supports the answer."""
    if end.explanation is None:
        return "\nThere was no memory to find the sources of this answer."
    if end.supported is None:
        return "\nThere are no documents that the answer could rest on."
    lines = [f"[{number}] {source}" for number, source in enumerate(end.sources, 1)]
    word, found = "Supported" if end.supported else "Not supported", end.explanation
    rests = (
        f"{found.support:.2f} nats rest on these sources, and the documents explain {found.explained:.0%} of the answer"
    )
    return "\n".join(["", *lines, f"{word} by the text: {rests}."])


def drawn_as_text(drawn: Drawn, method: str) -> str:
    """The chunks that pieces drew on most, a line each with these pieces; the highest share of a piece comes first."""
    if not drawn:
        return f"\nMethod {method} does not tell which chunks the answer drew on; focus and experts do."
    highest: dict[int, ChunkShare] = {}
    texts: dict[int, str] = {}
    last = None
    for text, best in drawn:
        chunk, before = best.chunk, texts.get(best.chunk, "")
        texts[chunk] = before + (" … " if before and last != chunk else "") + text
        highest[chunk] = max(highest.get(chunk, best), best, key=lambda one: one.share)
        last = chunk
    ordered = sorted(highest.values(), key=lambda one: one.share, reverse=True)
    lines = [f"{one}: {_shortened(texts[one.chunk])}" for one in ordered]
    more = [f"… and {len(lines) - _MOST_LINES} more chunks"] if len(lines) > _MOST_LINES else []
    return "\n".join(["\nWhile it was made, the answer drew most on:", *lines[:_MOST_LINES], *more])


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _require_folder(page: Path) -> None:
    """Refuse, before the answer is made, a page that cannot be written."""
    if page.is_dir() or not page.parent.is_dir():
        reason = "it is a folder" if page.is_dir() else f"there is no folder {page.parent}"
        raise _unwritable(page, reason)


def _write_page(path: Path, question: str, text: str, documents: Sequence[Document], end: Finished) -> None:
    if end.explanation is None:
        return
    try:
        path.write_text(source_page(question, text, documents, end.explanation), encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error.strerror) from error


def _unwritable(page: Path, reason: str | None) -> ConfigError:
    return ConfigError(f"--html {page}: cannot be written ({reason}). Name a file in a folder.")


class _Clock:
    """Seconds that loading took, and seconds from then on to the first text and to the end."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.loading = self.first_text = self.answer = 0.0

    def loaded(self) -> None:
        self.loading = time.perf_counter() - self._start
        self._start = time.perf_counter()

    def text_came(self) -> None:
        self.answer = time.perf_counter() - self._start
        self.first_text = self.first_text or self.answer


def _collect(events: Iterator[Event], clock: _Clock, *, show: bool) -> tuple[str, Finished, Drawn]:
    """The whole answer, printed on the way if it is to be shown."""
    text = ""
    drawn: Drawn = []
    try:
        with closing(events):  # type: ignore[type-var]
            for event in events:
                clock.text_came()
                text += event.text
                if event.evidence is not None:
                    drawn.append((event.text, event.evidence.best))
                if show:
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
    except KeyboardInterrupt:
        done = "the answer is not complete" if text else "there is no answer yet"
        raise KeyboardInterrupt(f"Interrupted: {done}. What was read of the documents is not kept.") from None
    if show and not text.endswith("\n"):
        typer.echo()
    return text, cast("Finished", event), drawn  # the last one


def _as_json(text: str, end: Finished, engine: FocusEngine, clock: _Clock) -> dict[str, Any]:
    loaded = engine.shared.loaded
    return {
        "text": text,
        "finish_reason": end.finish_reason,
        "method": end.method,
        "usage": asdict(end.usage),
        "chunk_scores": [
            {
                "tokens": len(found.chunk.token_ids),
                "characters": found.chunk.characters,
                "score": round(found.score, 4),
                "posterior": round(found.posterior, 4),
                "read": found.read,
            }
            for found in end.chunk_scores
        ],
        **_sources_as_json(end),
        "timings": {
            "loading_seconds": round(clock.loading, 3),
            "first_text_seconds": round(clock.first_text, 3),
            "answer_seconds": round(clock.answer, 3),
        },
        "model": {"id": loaded.model_id, "adapter": loaded.adapter_id, "device": str(engine.focus.device)},
    }


def _sources_as_json(end: Finished) -> dict[str, Any]:
    if end.explanation is None:
        return {}
    sources = [{**asdict(source), "score": round(source.score, 4)} for source in end.sources]
    numbers = {name: round(getattr(end.explanation, name), 4) for name in ("support", "explained")}
    return {"sources": sources, "supported": end.supported, **numbers}


def _drawn_as_json(drawn: Drawn) -> list[dict[str, Any]]:
    return [{"text": text, **asdict(best), "share": round(best.share, 4)} for text, best in drawn]


def _footer(end: Finished, clock: _Clock) -> str:
    usage, read = end.usage, f"{end.usage.input_tokens:,} tokens, "
    read += f"{usage.chunks} chunks" if usage.chunks else "all in the window"
    if end.chunk_scores:
        read += f", {sum(chunk.read for chunk in end.chunk_scores)} of them read again ({end.method})"
    return f"{read} · first text after {clock.first_text:.1f} s · {clock.answer:.1f} s in all"
