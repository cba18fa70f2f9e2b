"""What a person may want of a store without loading a model: list, verify, prune, remove."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from focus_core.cache.chunk_file import UnusableFile, check_identity, read_chunk, read_header
from focus_core.cache.folder import FolderContent, StoredDocument, chunk_path
from focus_core.cache.keys import chunk_key

_DAY = 24 * 60 * 60


@dataclass(frozen=True)
class ListedDocument:
    """A document of a store.

    Attributes:
        path: of its list
        chunks: of the document that are there
        nbytes: of their files, shared ones included
        used: when one of them was last used, in seconds since 1970
    """

    document: StoredDocument
    path: Path
    chunks: int
    nbytes: int
    used: float


def list_documents(folder: Path, content: FolderContent | None = None) -> list[ListedDocument]:
    """The documents of a folder, the last used first."""
    content = content or FolderContent(folder)
    found = []
    for file in content.documents.values():
        document = StoredDocument.read(file.path)
        if document is not None:
            paths = [chunk_path(folder, document.model, bytes.fromhex(key)) for key in set(document.chunks)]
            there = [content.chunks[path] for path in paths if path in content.chunks]
            used = max((chunk.used for chunk in there), default=file.used)
            found.append(ListedDocument(document, file.path, len(there), sum(chunk.nbytes for chunk in there), used))
    return sorted(found, key=lambda listed: -listed.used)


def remove_documents(folder: Path, listed: Collection[ListedDocument]) -> int:
    """Remove documents, and their chunks that no other document has; the bytes that this frees."""
    content, paths = FolderContent(folder), {one.path for one in listed}
    others = [one.document for one in list_documents(folder, content) if one.path not in paths]
    shared = {(other.model, key) for other in others for key in other.chunks}
    freed = 0
    for one in listed:
        for key in set(one.document.chunks):
            file = content.chunks.get(chunk_path(folder, one.document.model, bytes.fromhex(key)))
            if file is not None and (one.document.model, key) not in shared:
                file.path.unlink(missing_ok=True)
                freed += file.nbytes
        one.path.unlink(missing_ok=True)
    return freed


def prune(folder: Path, *, limit: int | None = None, unused_days: float | None = None) -> int:
    """Remove what was not used for longest, damaged lists, and lists of documents of which nothing is left.

    Args:
        limit: bytes that everything in the folder may take
        unused_days: what was not used for so long

    Returns:
        the bytes that this frees
    """
    content = FolderContent(folder)
    before = content.nbytes
    content.remove_left_behind()
    if unused_days is not None:
        oldest = time.time() - unused_days * _DAY
        files = (*content.chunks.values(), *content.documents.values())
        content.shrink(content.nbytes - sum(file.nbytes for file in files if file.used < oldest))
    if limit is not None:
        content.shrink(max(limit, content.nbytes - content.removable))
    useful = {listed.path for listed in list_documents(folder, content) if listed.chunks}
    for path in content.documents:
        if path not in useful:
            path.unlink(missing_ok=True)
    return before - FolderContent(folder).nbytes


def verify_files(paths: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
    """Each chunk's file, and what is wrong with it, if anything: checksums, tokens, and that its name is theirs."""
    for path in paths:
        try:
            header = read_header(path)
            check_identity(header, {"model": path.parents[1].name})
            _, token_ids = read_chunk(path, header)
            if chunk_key(token_ids, header.kv_dtype).hex() != path.stem:
                raise UnusableFile("its name is not the key of its tokens")
        except FileNotFoundError:
            continue
        except UnusableFile as error:
            yield path, str(error)
        else:
            yield path, None
