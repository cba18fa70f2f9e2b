"""LangChain's wrappers of local models side by side: `python -m benchmarks.langchain_features`.

Installs langchain-huggingface into an environment of its own (its versions and ours need not agree; the network is
needed once), tries every feature of `langchain_probe.py` there and here on the same tiny model, and prints a Markdown
table. Takes some minutes, most of them waiting: one feature is a first token that takes more than a minute.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import save_tiny_model

PROBE = Path(__file__).with_name("langchain_probe.py")
ROOT = PROBE.parents[1]
PACKAGES = ("langchain-huggingface", "transformers", f"torch=={version('torch').split('+')[0]}")
SHOWN = ("langchain-core", "langchain-huggingface", "transformers", "torch")


def save_model(folder: Path) -> Path:
    """The tiny model of the tests, with a space for each "r": the other package streams word by word."""
    save_tiny_model(folder, readable=True)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    space, letter = tokenizer.convert_tokens_to_ids(["Ġ", "r"])
    model.lm_head.weight.data[space] = 1.01 * model.lm_head.weight.data[letter]
    model.save_pretrained(folder)
    return folder


def environment(folder: Path) -> Path:
    """The interpreter of an environment with the other package; made where it is missing."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        print(f"Installing {', '.join(PACKAGES)} into {folder} …", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def start(python: Path | str, package: str, model: Path) -> subprocess.Popen[str]:
    """The probe in another process."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT) if package == "focusllm" else ""}
    return subprocess.Popen([python, PROBE, package, model], stdout=subprocess.PIPE, text=True, env=variables)


def finish(process: subprocess.Popen[str]) -> dict[str, dict[str, str]]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"The probe failed with exit code {process.returncode}.")
    results: dict[str, dict[str, str]] = json.loads(output.splitlines()[-1])
    return results


def versions(python: Path | str, names: tuple[str, ...]) -> str:
    code = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {names!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def table(results: dict[str, dict[str, str]]) -> str:
    """Markdown: a row per feature, a column per wrapper, and below it what happened instead."""
    wrappers = list(results)
    lines = [f"| | {' | '.join(wrappers)} |", "|---|" + "---|" * len(wrappers)]
    notes: list[str] = []
    for feature in results[wrappers[0]]:
        cells = []
        for wrapper in wrappers:
            found, _, reason = results[wrapper][feature].partition(": ")
            if reason:
                if reason not in notes:
                    notes.append(reason)
                found = f"{found} ({notes.index(reason) + 1})"
            cells.append(found)
        lines.append(f"| {feature} | {' | '.join(cells)} |")
    explained = [f"{number}. {note.replace('|', ' ')}" for number, note in enumerate(notes, 1)]
    return "\n".join([*lines, "", "What happened instead:", "", *explained])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environment", type=Path, help="keep (or find) the other environment here")
    given: Any = parser.parse_args()
    with TemporaryDirectory() as temporary:
        model = save_model(Path(temporary) / "model")
        other = environment(given.environment or Path(temporary) / "environment")
        running = [start(other, "huggingface", model), start(sys.executable, "focusllm", model)]
        results = {wrapper: found for process in running for wrapper, found in finish(process).items()}
        print(
            f"{datetime.date.today()}; {versions(other, SHOWN)}; on our side {versions(sys.executable, SHOWN[:1])}.\n"
        )
        print(table(results))


if __name__ == "__main__":
    main()
