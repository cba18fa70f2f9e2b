"""LlamaIndex's wrapper of local models beside ours: `python -m benchmarks.llama_index_features`.

Installs llama-index-llms-huggingface into an environment of its own (its versions and ours need not agree; the network
is needed once), tries every feature of `llama_index_probe.py` there and here on the same tiny model, and prints a
Markdown table. Takes some minutes, most of them waiting: one feature is a first token that takes more than a minute.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.langchain_features import finish, table, versions
from tests.tiny import save_tiny_model

PROBE = Path(__file__).with_name("llama_index_probe.py")
ROOT = PROBE.parents[1]
PACKAGES = ("llama-index-llms-huggingface", f"torch=={version('torch').split('+')[0]}")
SHOWN = ("llama-index-core", "llama-index-llms-huggingface", "transformers", "torch")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environment", type=Path, help="keep (or find) the other environment here")
    given: Any = parser.parse_args()
    with TemporaryDirectory() as temporary:
        model = save_tiny_model(Path(temporary) / "model", readable=True)
        other = environment(given.environment or Path(temporary) / "environment")
        running = [start(other, "huggingface", model), start(sys.executable, "focusllm", model)]
        results = {wrapper: found for process in running for wrapper, found in finish(process).items()}
        print(f"{datetime.date.today()}, {versions(other, SHOWN)}; ours: {versions(sys.executable, SHOWN[:1])}\n")
        print(table(results))


if __name__ == "__main__":
    main()
