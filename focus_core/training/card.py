"""The model card of an adapter: what it belongs to, how it was trained, on what, and what it scored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from focus_core import __version__
from focus_core.config import FocusConfig
from focus_core.loading.adapters import ADAPTER_CARD
from focus_core.training.config import TrainingConfig
from focus_core.training.log import EVALUATION, FIRST_TOKEN, HELD_OUT, LOSSES, read_rows

_ELSEWHERE = ("license", "data_notes")  # stand by themselves
_NO_NOTES = "Where the data come from, and under which licence, was not said (`data_notes`)."
_HEAD = """# Candidate projections of FocusLLM for {name}

With this adapter {name} answers questions about texts that are longer than its window: it reads them in chunks, and
each chunk gives one candidate token to the memory from which the frozen model answers (arXiv 2408.11745).

```python
from focus_core import FocusEngine

engine = FocusEngine.from_pretrained({base!r}, adapter="this folder, or its hub id")
print(engine.generate("Who signed it?", documents=[text]).text)
```
"""
_SCORES = """## Scores

Held-out questions: the mean loss of a token of the answer (nats), with the right documents, and as controls with those
of another record and with an empty page. What lies between them is reading; the rest is how answers sound.

"""
_OTHER_SCORES = """## Other figures

What the run's own evaluation (`evaluate=`) found.

"""
_TABLE = "| | |\n|---|---:|\n"


def write_card(folder: Path, config: TrainingConfig, base_id: str, step: int) -> None:
    """Write the card of the adapter in `folder`, which is that after `step` steps of a run."""
    parts = [
        _front_matter(config, base_id),
        _HEAD.format(name=Path(base_id).name, base=_without_folders(base_id)),
        _training(config, step),
        _data(config),
        _scores(config, step),
    ]
    (folder / ADAPTER_CARD).write_text("\n".join(part for part in parts if part), encoding="utf-8")


def _front_matter(config: TrainingConfig, base_id: str) -> str:
    lines = ["library_name: focusllm", "tags: [focusllm, long-context]"]
    if config.license:
        lines.insert(0, f"license: {config.license}")
    if base_id.count("/") == 1 and not Path(base_id).exists():  # a hub id; the hub refuses a path
        lines.insert(0, f"base_model: {base_id}")
    return "\n".join(("---", *lines, "---\n"))


def _training(config: TrainingConfig, step: int) -> str:
    rows = [row for row in read_rows(config.output / LOSSES) if int(row["step"]) <= step]
    targets = sum(int(row["targets"]) for row in rows)
    means = {0: 0.0} | {int(row["step"]): float(row["seconds"]) for row in rows}  # of the steps since the row before
    hours = sum((last - first) * means[last] for first, last in pairwise(means)) / 3600
    settings = "\n".join(f"{name} = {_toml(value)}" for name, value in _changed(config).items())
    return (
        f"## Training\n\n{step:,} of {config.steps:,} steps, {targets:,} supervised tokens, {hours:.1f} hours, with "
        f"focusllm {__version__}. `focusllm train train.toml` runs it again, with the data beside this file:\n\n"
        f"```toml\n{settings}\n```\n"
    )


def _changed(config: TrainingConfig) -> dict[str, Any]:
    """The settings that are not the default, as TOML has them; of files the names."""
    usual = TrainingConfig(config.output)
    found = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name not in _ELSEWHERE
        and (field.default is MISSING or getattr(config, field.name) != getattr(usual, field.name))
    }
    return found | {name: _without_folders(found[name]) for name in ("model", "adapter") if name in found}


def _without_folders(name: str) -> str:
    """A hub id as it is, of a path the last part: where it lies on the machine that trained is nobody's business."""
    return Path(name).name if Path(name).exists() else name


def _toml(value: Any) -> str:
    if isinstance(value, Path):
        return json.dumps(value.name)
    if isinstance(value, FocusConfig):
        return _toml(value.as_dict())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{json.dumps(name)} = {_toml(one)}' for name, one in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)


def _data(config: TrainingConfig) -> str:
    files = [*((path, "trained") for path in config.data), *((path, "held out") for path in config.validation)]
    rows = "".join(_file(Path(path), use) for path, use in files)
    table = f"| file | use | lines | SHA-256 |\n|---|---|---:|---|\n{rows}\n" if files else ""
    share = f"Of the records with questions, {100 * config.held_out:g} % are held out.\n\n" if config.held_out else ""
    from_python = "" if config.data else "Examples that were made in Python.\n\n"
    return f"## Data\n\n{from_python}{table}{share}{config.data_notes or _NO_NOTES}\n"


def _file(path: Path, use: str) -> str:
    try:
        content = path.read_bytes()
    except OSError:  # moved or deleted while the run went on
        return f"| {path.name} | {use} | no longer there | – |\n"
    return f"| {path.name} | {use} | {len(content.splitlines()):,} | `{sha256(content).hexdigest()[:16]}…` |\n"


def _scores(config: TrainingConfig, step: int) -> str:
    """What was held out, and apart from it what the user's own evaluation measured."""
    rows = [row for row in read_rows(config.output / EVALUATION) if int(row["step"]) == step]
    losses = [row for row in rows if config.holds_out and row["name"].removesuffix(FIRST_TOKEN) in HELD_OUT]
    parts = ((_SCORES, losses), (_OTHER_SCORES, [row for row in rows if row not in losses]))
    return "\n".join(head + _TABLE + "".join(map(_score, found)) for head, found in parts if found)


def _score(row: Mapping[str, str]) -> str:
    return f"| {row['name']} | {float(row['value']):.3f} |\n"
