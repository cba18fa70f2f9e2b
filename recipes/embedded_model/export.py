"""Step 5: puts base, tokenizer and adapter into the package: `python -m recipes.embedded_model.export`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from focus_core.loading.adapters import load_adapter, save_adapter
from focus_core.loading.named import EMBEDDED_FOLDER

OF_TRAINING = ("checkpoint.*", "*.csv")
LIMIT = 15_000_000  # bytes, model, adapter and tokenizer together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("runs/embedded/memory2"))
    parser.add_argument("--adapter", type=Path, default=Path("runs/embedded/adapter/adapter"))
    parser.add_argument("--out", type=Path, default=EMBEDDED_FOLDER)
    args = parser.parse_args()
    base, adapter = args.out / "base", args.out / "adapter"
    for folder in (base, adapter):
        if any(folder.glob("checkpoint.*")):
            raise SystemExit(f"{folder} holds a training run, which would be lost. Choose another --out.")
    if base.resolve() == args.base.resolve():
        raise SystemExit(f"{base} is where the base comes from. Choose another --out.")
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(args.base, base, ignore=shutil.ignore_patterns(*OF_TRAINING))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    projections, trained_with = load_adapter(args.adapter, model)
    save_adapter(
        adapter, projections, model, trained_with=trained_with, base_id="focusllm-embedded", dtype=torch.float16
    )
    exported = [path for folder in (base, adapter) for path in folder.rglob("*") if path.is_file()]
    for path in exported:
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    size = sum(path.stat().st_size for path in exported)
    print(f"{size:,} bytes in {args.out}")
    if size > LIMIT:
        raise SystemExit(f"That is more than the {LIMIT:,} bytes the package may carry.")


if __name__ == "__main__":
    main()
