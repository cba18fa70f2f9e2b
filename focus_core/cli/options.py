"""Options that commands have in common."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Model folder, hub id, GGUF file, or smollm2. Default: the embedded model."),
]
GgufFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="Which GGUF file of --model, where that is a hub id or a folder.")
]
Adapter = Annotated[
    str | None, typer.Option(metavar="NAME", help="Candidate projections trained for the model: folder or hub id.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, … auto takes the GPU where there is one.")]
Dtype = Annotated[
    str,
    typer.Option(
        help="auto, float32, bfloat16 or float16. auto is bfloat16 on a GPU, float32 elsewhere and for the "
        "embedded model."
    ),
]
ChunkSize = Annotated[
    int | None, typer.Option(min=1, help="Tokens per chunk. Default: what the adapter was trained with.")
]
DynamicPrompt = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of the question's end after every chunk, at most. Default: as for --chunk-size."),
]
ParallelChunks = Annotated[
    int | None, typer.Option(min=1, help="Chunks in one pass: fewer take less memory. Default: what suits the device.")
]
Method = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto, focus, plain, select or experts. auto: the plain model for texts that fit its window with the "
        "question; for longer ones FocusLLM if there is an adapter, else select.",
    ),
]
LayoutName = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="NAME",
        help="chat: documents stand in the user's turn. raw: in front of the conversation. Default: as the adapter was "
        "trained; without one chat, if the model has a chat template.",
    ),
]
SelectTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Tokens of chunks that --method select reads again. Default: 2048, or what the window holds."
    ),
]
KvDtype = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="int8 keeps chunks in a quarter (float32) or half (bfloat16) of the bytes, rounded. Default: as --dtype.",
    ),
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="Longest answer, in tokens. Default: 256, or what the window leaves.")
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="A system prompt.")]
Documents = Annotated[
    list[str] | None,
    typer.Option(
        "--document",
        "-d",
        metavar="FILE",
        help="Text in any encoding, PDF (extra `pdf`), a folder with such files, or - for standard input. Give it "
        "several times for several documents.",
    ),
]
Setting = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Another field of FocusConfig, as boundaries=content; may be repeated."),
]
Store = Annotated[
    str | None,
    typer.Option(
        envvar="FOCUSLLM_STORE",
        metavar="FOLDER",
        help="Keep what was read in this folder, and read nothing again that is there. It holds the documents' texts.",
    ),
]
StoreLimit = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What the folder may take, as 20G. Default: half of the free disk. What was not used for longest leaves.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
