"""Chunks in a folder: what is read back is what was written, and nothing wrong is ever read back."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from focus_core import ConfigError, FocusWarning
from focus_core.cache import disk as disk_module
from focus_core.cache import journal
from focus_core.cache.chunk_file import ChunkHeader, StateShape, read_header
from focus_core.cache.chunks import ChunkBlock, ChunkRow
from focus_core.cache.disk import DiskTier
from focus_core.cache.folder import FolderContent, StoredDocument, chunk_path
from focus_core.cache.listing import list_documents, prune, remove_documents, verify_files

MODEL, SOFTWARE = "ab" * 32, "transformers 5"
KEYS = [bytes([number]) * 32 for number in range(40)]
CPU = torch.device("cpu")
STATES = StateShape(layers=3, kv_heads=2, head_dim=4, dtype=torch.float32)


def on_cpu(header: ChunkHeader, chunks: int) -> ChunkBlock:
    return header.block(chunks, CPU)


def tokens_of(key: bytes) -> list[int]:
    return [key[0], 7, 8, 9]


def rows_of(*numbers: int, layers: int = 2) -> dict[bytes, ChunkRow]:
    block = ChunkBlock(
        *torch.randn(2, layers, len(numbers), 2, 4, 4, generator=torch.Generator().manual_seed(numbers[0]))
    )
    return {KEYS[number]: (block, row) for row, number in enumerate(numbers)}


def tier(folder: Path, *, model: str = MODEL, software: str = SOFTWARE, limit: int | None = None) -> DiskTier:
    return DiskTier(folder, model, states=STATES, software=software, limit=limit)


class Question:
    """As long as it lives, its chunks stay."""


def note(disk: DiskTier, name: str, *numbers: int) -> None:
    question, keys = Question(), [KEYS[number] for number in numbers]
    disk.touch(question, keys)
    disk.note(question, name, "12" * 32, 4 * len(keys), tuple(key.hex() for key in keys), "tiny")


def loaded(disk: DiskTier, *numbers: int, layers: int = 2) -> dict[bytes, ChunkRow]:
    found = disk.find([KEYS[number] for number in numbers], tokens_of, layers=layers)
    return {key: row for rows in disk.load(found, tokens_of, on_cpu) for key, row in rows.items()}


def file_of(folder: Path, number: int) -> Path:
    return chunk_path(folder, MODEL, KEYS[number])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_bytes_in_are_bytes_out(folder: Path) -> None:
    saved = rows_of(0, 1, 2)
    tier(folder).save(saved, tokens_of)
    again = loaded(tier(folder), 2, 0, 1, 5)
    assert set(again) == set(saved)
    for key, (block, row) in saved.items():
        other, its_row = again[key]
        assert torch.equal(other.keys[:, its_row], block.keys[:, row])
        assert torch.equal(other.values[:, its_row], block.values[:, row])
    assert len({id(block) for block, _ in again.values()}) == 1


def test_one_chunk_is_in_memory_twice_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """oMLX #1736: a queue of what was to be written doubled the memory."""
    held: list[int] = []
    write = disk_module.write_chunk

    def noting(path: Path, chunk: dict[str, torch.Tensor], *rest: object) -> None:
        held.append(sum(tensor.nbytes for tensor in chunk.values()))
        write(path, chunk, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(disk_module, "write_chunk", noting)
    rows = rows_of(0, 1, 2)
    tier(folder).save(rows, tokens_of)
    assert held == [rows[KEYS[0]][0].nbytes // 3] * 3


def test_more_layers_replace_fewer(folder: Path) -> None:
    disk = tier(folder)
    disk.save(rows_of(0, layers=2), tokens_of)
    assert loaded(disk, 0, layers=3) == {}
    disk.save(rows_of(0, layers=3), tokens_of)
    disk.save(rows_of(0, layers=2), tokens_of)
    assert loaded(disk, 0, layers=2)[KEYS[0]][0].layers == 3


# --- files that are wrong ---------------------------------------------------------------------------------------------


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * 4000)


def of_other_tokens(path: Path) -> None:
    tier(path.parents[2]).save(rows_of(1), tokens_of)
    shutil.copy(file_of(path.parents[2], 1), path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_off, "damaged"),
        (altered, "checksum of its (keys|values|token_ids) is wrong"),
        (emptied, "damaged"),
        (garbage, "damaged"),
        (of_other_tokens, "other tokens"),
        (a_folder, ""),
    ],
)
def test_a_wrong_file_is_not_used_and_replaced(folder: Path, damage: Callable[[Path], None], reason: str) -> None:
    """llama.cpp #27052, oMLX #1675: a bad file harmed the process."""
    tier(folder).save(rows_of(0, 3), tokens_of)
    damage(file_of(folder, 0))
    disk = tier(folder)
    assert set(loaded(disk, 0, 3)) == {KEYS[3]}
    with pytest.warns(FocusWarning, match=f"1 stored chunk cannot be used.*{KEYS[0].hex()}.*{reason}") as warned:
        disk.warn_of_unusable()
    assert len(warned) == 1
    disk.warn_of_unusable()  # says nothing more
    if damage is not a_folder:
        disk.save(rows_of(0), tokens_of)
        assert set(loaded(tier(folder), 0)) == {KEYS[0]}


def reshaped(shape: str, dtype: str = "F32") -> Callable[[Path], None]:
    """An altered header: the bytes stay, and so do their checksums."""

    def alter(path: Path) -> None:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = content[8 : 8 + length].decode()
        for name in ("keys", "values"):
            header = header.replace(
                f'"{name}":{{"dtype":"F32","shape":[2,2,4,4]', f'"{name}":{{"dtype":"{dtype}","shape":[{shape}]'
            )
        header = header.replace('"shape of keys":"2 x 2 x 4 x 4"', f'"shape of keys":"{shape.replace(",", " x ")}"')
        assert shape in header
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + content[8 + length :])

    return alter


@pytest.mark.parametrize(
    "damage", [reshaped("2,4,4,2"), reshaped("4,2,4,2"), reshaped("2,2,4,8", "BF16"), reshaped("4,2,4,4", "F16")]
)
def test_an_altered_shape_is_not_used(folder: Path, damage: Callable[[Path], None]) -> None:
    """Checksums are of the bytes alone: the answer died of the wrong shape."""
    tier(folder).save(rows_of(0), tokens_of)
    damage(file_of(folder, 0))
    disk = tier(folder)
    assert loaded(disk, 0) == {}
    with pytest.warns(FocusWarning, match="1 stored chunk cannot be used"):
        disk.warn_of_unusable()
    assert loaded(disk, 0) == {}
    disk.warn_of_unusable()  # named before; it could not be replaced yet
    disk.save(rows_of(0), tokens_of)
    assert set(loaded(disk, 0)) == {KEYS[0]}


def test_a_shape_that_was_altered_in_one_place_shows_without_a_model(folder: Path) -> None:
    tier(folder).save(rows_of(0), tokens_of)
    path = file_of(folder, 0)
    path.write_bytes(path.read_bytes().replace(b'"shape":[2,2,4,4]', b'"shape":[2,4,4,2]'))
    ((_, reason),) = verify_files([path])
    assert reason is not None
    assert "shape" in reason


def test_a_file_of_another_model_under_our_name_is_not_used(folder: Path) -> None:
    """SGLang #24758, #26792, vLLM #57810: pages of another model, or of older weights, were used."""
    other = tier(folder, model="cd" * 32)
    other.save(rows_of(0), tokens_of)
    assert loaded(tier(folder), 0) == {}
    file_of(folder, 0).parent.mkdir(parents=True)
    shutil.copy(chunk_path(folder, "cd" * 32, KEYS[0]), file_of(folder, 0))
    disk = tier(folder)
    assert loaded(disk, 0) == {}
    with pytest.warns(FocusWarning, match="its model is 'cdcd"):
        disk.warn_of_unusable()


def test_what_other_software_has_computed_is_read_anew(folder: Path) -> None:
    tier(folder, software="transformers 4").save(rows_of(0), tokens_of)
    disk = tier(folder)
    assert loaded(disk, 0) == {}
    with pytest.warns(FocusWarning, match="its software is 'transformers 4', not 'transformers 5'"):
        disk.warn_of_unusable()


def test_a_file_that_another_process_removes_meanwhile_is_missing_without_a_word(folder: Path) -> None:
    disk = tier(folder)
    disk.save(rows_of(0, 1), tokens_of)
    found = disk.find(KEYS[:2], tokens_of, layers=2)
    file_of(folder, 0).unlink()
    assert [set(rows) for rows in disk.load(found, tokens_of, on_cpu)] == [set(), {KEYS[1]}]
    disk.warn_of_unusable()


def test_files_are_read_by_threads_that_end_with_the_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody waits for all of them, as after Ctrl-C."""
    disk = tier(folder)
    disk.save(rows_of(0, 1, 2, 3), tokens_of)
    found = disk.find(KEYS[:4], tokens_of, layers=2)
    seen = set[str]()
    read = disk_module.read_chunk_into

    def noted(*arguments: Any) -> list[int]:
        seen.add(threading.current_thread().name.split("_")[0])
        return read(*arguments)

    monkeypatch.setattr(disk_module, "read_chunk_into", noted)
    loading = disk.load(found, tokens_of, on_cpu)
    assert set(next(loading)) == {KEYS[0]}
    loading.close()  # type: ignore[attr-defined]
    assert seen == {"store"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("store")]
    assert list(loaded(disk, 3, 1, 0)) == [KEYS[3], KEYS[1], KEYS[0]]


def test_bytes_are_kept_up_as_files_come_and_go(folder: Path) -> None:
    """They were added up anew for every chunk, over all files."""
    disk = tier(folder)
    disk.save(rows_of(0, 1, 2, 3), tokens_of)
    content = FolderContent(folder)
    path = file_of(folder, 1)
    content.added(path, 10)  # in place of the older one
    content.added(folder / "new", 7)
    content.added(folder / "list.json", 5)

    def listed() -> int:
        return sum(file.nbytes for file in (*content.chunks.values(), *content.documents.values()))

    assert content.removable == listed()
    assert content.shrink(content.nbytes - 1)
    assert content.removable == listed()
    assert not file_of(folder, 0).exists()


# --- the limit --------------------------------------------------------------------------------------------------------

ONE = 2 * 2 * 2 * 4 * 4 * 4  # bytes of keys and values of a chunk


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_files_of_others_count_and_stay(folder: Path) -> None:
    """oMLX #2064, #2115: what another version had written was not counted, and the folder outgrew its limit."""
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"x" * 50_000)
    disk = tier(folder, limit=50_000 + 4 * (ONE + 2048))
    for number in range(8):
        disk.save(rows_of(number), tokens_of)
        assert size(folder) <= disk.limit
    assert (folder / "holiday.jpg").stat().st_size == 50_000
    assert set(loaded(disk, *range(8))) >= set(KEYS[4:8])


def test_the_least_recently_used_leaves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the oldest: a document that is asked every day stays."""
    monkeypatch.setattr(disk_module, "_BELIEVED", -1.0)
    disk = tier(folder, limit=10**9)
    for number in range(3):
        disk.save(rows_of(number), tokens_of)
        time.sleep(0.05)
    disk.touch(Question(), [KEYS[0]])
    disk.limit = size(folder) + 2300
    disk.save(rows_of(3), tokens_of)
    assert set(loaded(disk, 0, 1, 2, 3)) == {KEYS[0], KEYS[2], KEYS[3]}


def test_a_full_store_says_so_once(folder: Path) -> None:
    disk = tier(folder, limit=100)
    with pytest.warns(FocusWarning, match="is full.*Raise store_limit") as warned:
        disk.save(rows_of(0, 1), tokens_of)
    assert len(warned) == 1
    disk.save(rows_of(2), tokens_of)
    assert not list(folder.rglob("*.safetensors"))


def test_a_question_does_not_evict_its_own_chunks_and_says_what_is_not_kept(folder: Path) -> None:
    """A document over the limit was read anew in part at every question, without a word."""
    disk = tier(folder)
    disk.save(rows_of(8), tokens_of)
    disk.limit = 3 * size(folder) + 2048
    question = Question()
    assert disk.touch(question, KEYS[:6]) == set(KEYS[:6])
    with pytest.warns(FocusWarning, match="is full: what is used now.*Raise store_limit") as warned:
        disk.save(rows_of(*range(6)), tokens_of)
    assert len(warned) == 1
    kept = set(loaded(disk, *range(6)))
    assert len(kept) >= 3
    assert KEYS[0] in kept
    for _ in range(3):  # asked again: they are there, and nothing is said again
        question = Question()
        assert disk.touch(question, KEYS[:6]) == set(KEYS[:6]) - kept
        disk.save({key: row for key, row in rows_of(*range(6)).items() if key not in kept}, tokens_of)
        assert set(loaded(disk, *range(6))) == kept
    question = Question()  # another one, at once
    disk.touch(question, [KEYS[9]])
    disk.save(rows_of(9), tokens_of)
    assert set(loaded(disk, 9)) == {KEYS[9]}
    assert size(folder) <= disk.limit


def test_two_questions_at_once_keep_what_both_use(folder: Path) -> None:
    disk = tier(folder)
    disk.save(rows_of(0, 1, 2), tokens_of)
    one, other = Question(), Question()
    disk.touch(one, [KEYS[0]])
    disk.touch(other, [KEYS[1]])
    disk.limit = size(folder) + 2300
    disk.save(rows_of(3), tokens_of)
    assert set(loaded(disk, 0, 1, 2, 3)) == {KEYS[0], KEYS[1], KEYS[3]}
    del one
    disk.save(rows_of(4), tokens_of)
    assert set(loaded(disk, 0, 1, 2, 3, 4)) == {KEYS[1], KEYS[3], KEYS[4]}


@pytest.mark.parametrize("clock", [-(10**6), 10**6])
def test_the_clock_of_files_may_go_wrong(folder: Path, clock: int) -> None:
    """A copied folder, a clock that was set back, a server with another one: nothing, or one's own was evictable."""
    disk = tier(folder)
    disk.save(rows_of(0, 1), tokens_of)
    for path in folder.rglob("*.safetensors"):
        os.utime(path, times=(time.time() + clock,) * 2)
    disk = tier(folder, limit=size(folder) + 1900)
    question = Question()
    disk.touch(question, [KEYS[2], KEYS[0]])
    disk.save(rows_of(2), tokens_of)
    assert set(loaded(disk, 0, 1, 2)) == {KEYS[0], KEYS[2]}


def test_a_damaged_file_is_replaced_where_there_is_no_room_for_another(folder: Path) -> None:
    tier(folder).save(rows_of(0), tokens_of)
    cut_off(file_of(folder, 0))
    disk = tier(folder, limit=file_of(folder, 0).stat().st_size + 2400)
    question = Question()
    disk.touch(question, [KEYS[0]])
    assert loaded(disk, 0) == {}
    disk.save(rows_of(0), tokens_of)
    assert set(loaded(tier(folder), 0)) == {KEYS[0]}


def test_the_limit_holds_for_all_who_write(folder: Path) -> None:
    """oMLX #1915, #2064: each writer counted for itself."""
    limit = 6 * (ONE + 2048)

    def write(number: int) -> None:
        disk = tier(folder, limit=limit)
        for key in range(8 * number, 8 * number + 8):
            disk.save(rows_of(key), tokens_of)
            with disk._journal.turn():  # nobody writes
                sizes.append(size(folder))

    sizes = list[int]()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert max(sizes) <= limit
    assert len(FolderContent(folder).chunks) >= 4


def test_a_smaller_limit_holds_from_the_first_question_on(folder: Path) -> None:
    tier(folder).save(rows_of(*range(6)), tokens_of)
    time.sleep(0.1)
    disk = tier(folder, limit=3 * (ONE + 2048))
    assert len(FolderContent(folder).chunks) == 6  # a plan, which only looks, changes nothing
    disk.touch(Question(), [KEYS[0]])
    assert size(folder) <= disk.limit
    assert KEYS[0] in loaded(disk, *range(6))
    disk = tier(folder, limit=1000)  # less than what is used
    with pytest.warns(FocusWarning, match="is full"):
        disk.touch(question := Question(), [KEYS[0]])
    assert set(loaded(disk, *range(6))) == {KEYS[0]}
    disk.touch(Question(), [])
    assert question


def test_lists_of_documents_count_and_leave(folder: Path) -> None:
    """They took two megabytes of a limit of four, and nothing was written any more."""
    disk = tier(folder, limit=8 * (ONE + 2048))
    disk.save(rows_of(0), tokens_of)
    for number in range(200):
        note(disk, f"copy {number}", 0)
        assert size(folder) <= disk.limit
    disk.save(rows_of(1, 2), tokens_of)
    assert set(loaded(disk, 1, 2)) == {KEYS[1], KEYS[2]}
    assert "copy 199" in {listed.document.name for listed in list_documents(folder)}
    nothing = tier(folder.with_name("nothing"), limit=0)
    with pytest.warns(FocusWarning, match="is full"):
        note(nothing, "letter", 0)
    assert not list(nothing.folder.rglob("*.json"))


def test_a_list_stays_as_long_as_its_question_runs(folder: Path) -> None:
    """It was evicted for the chunks that it names."""
    disk, question = tier(folder), Question()
    disk.save(rows_of(8, 9), tokens_of)
    disk.touch(question, KEYS[:4])
    disk.note(question, "letter", "12" * 32, 16, tuple(key.hex() for key in KEYS[:4]), "tiny")
    assert disk.touch(question, KEYS[:4])  # it looks again, before it reads
    disk.limit = size(folder) + 2300
    with pytest.warns(FocusWarning, match="is full"):
        disk.save(rows_of(*range(4)), tokens_of)
    (listed,) = list_documents(folder)
    assert 0 < listed.chunks < 4
    assert not set(loaded(disk, 8, 9))


def test_a_full_store_is_not_looked_through_for_every_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is used for long is full: each write took a walk through thousands of files."""
    looked = list[Path]()

    def noting(path: Path) -> FolderContent:
        looked.append(path)
        return FolderContent(path)

    monkeypatch.setattr(disk_module, "FolderContent", noting)
    disk, other = tier(folder, limit=6 * (ONE + 2048)), tier(folder, limit=6 * (ONE + 2048))
    for one in (disk, other):
        one._journal.longest = 2**16  # as with an ordinary limit
    disk.limit = other.limit = disk.limit + 2**13
    for number in range(30):
        (disk, other)[number % 2].save(rows_of(number), tokens_of)
        assert size(folder) <= disk.limit
    assert not file_of(folder, 0).exists()
    # Each at its start, and once more for what the other had written before it knew the journal.
    assert len(looked) <= 4


def test_two_hundred_restarts_stay_within_the_limit(folder: Path) -> None:
    """oMLX #1915, #3829: what was there at the start was not counted."""
    limit = 5 * (ONE + 2048)
    for restart in range(200):
        disk = tier(folder, limit=limit)
        disk.save(rows_of(restart % 8), tokens_of)
        assert size(folder) <= limit
    assert len(loaded(disk, *range(8))) >= 4


@pytest.mark.parametrize("limit", [-1, 1.5, True, "20GB"])
def test_an_impossible_limit(folder: Path, limit: object) -> None:
    with pytest.raises(ConfigError, match="store_limit="):
        tier(folder, limit=limit)  # type: ignore[arg-type]


# --- folders that cannot be written to --------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only")])
def test_a_full_or_read_only_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    disk = tier(folder)
    disk.save(rows_of(0), tokens_of)

    def failing(path: Path, *_: object, **__: object) -> None:
        path.with_suffix(".partial").write_bytes(b"half")
        path.with_suffix(".partial").unlink()
        raise OSError(number, said)

    monkeypatch.setattr(disk_module, "write_chunk", failing)
    with pytest.warns(FocusWarning, match=f"cannot be written to: {said}") as warned:
        disk.save(rows_of(1, 2), tokens_of)
    assert len(warned) == 1
    assert set(loaded(disk, 0, 1)) == {KEYS[0]}


def test_a_folder_that_vanished_is_not_made_anew(folder: Path) -> None:
    """It may have been on a disk that was taken out, and the place where it was on another one."""
    disk = tier(folder)
    shutil.rmtree(folder)
    with pytest.warns(FocusWarning, match="not there any more"):
        disk.save(rows_of(0), tokens_of)
    assert not folder.exists()
    assert loaded(disk, 0) == {}


def test_writing_is_tried_again_by_the_next_question(folder: Path) -> None:
    """llama.cpp #26676: after one error nothing was kept for the life of the process."""
    disk = tier(folder)
    shutil.rmtree(folder)
    with pytest.warns(FocusWarning, match="not there any more"):
        disk.save(rows_of(0), tokens_of)
    assert not disk.writes
    disk.touch(Question(), [])
    assert disk.writes
    disk.save(rows_of(0), tokens_of)  # says nothing more
    assert not disk.writes
    folder.mkdir()
    disk.touch(Question(), [])
    disk.save(rows_of(0), tokens_of)
    assert set(loaded(disk, 0)) == {KEYS[0]}
    shutil.rmtree(folder)
    disk.touch(Question(), [])
    with pytest.warns(FocusWarning, match="not there any more"):  # again, because it was there meanwhile
        disk.save(rows_of(1), tokens_of)


def test_a_folder_stays_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    disk = tier(Path("store"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    disk.save(rows_of(0), tokens_of)
    assert set(loaded(disk, 0)) == {KEYS[0]}
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == []


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "a\0b", 5, True, b"bytes"])
def test_what_is_no_name_of_a_folder(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="store="):
        tier(name)


def test_nothing_is_written_behind_a_link_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    """Its bytes would be in no count."""
    folder.mkdir()
    (tmp_path / "behind").mkdir()
    (folder / MODEL).symlink_to(tmp_path / "behind")
    with pytest.warns(FocusWarning, match="is a link to another folder"):
        tier(folder).save(rows_of(0), tokens_of)
    assert not list((tmp_path / "behind").rglob("*.safetensors"))


def test_a_store_that_is_itself_a_link_is_a_store(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "behind").mkdir()
    folder.symlink_to(tmp_path / "behind")
    tier(folder).save(rows_of(0), tokens_of)
    assert set(loaded(tier(folder), 0)) == {KEYS[0]}


def test_a_writer_that_does_not_go_on_is_waited_for_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_PATIENCE", 0.2)
    disk, other = tier(folder), tier(folder)
    with other._journal.turn():
        with pytest.warns(FocusWarning, match="another process holds"):
            disk.save(rows_of(0), tokens_of)
        monkeypatch.setattr(journal, "_PATIENCE", 600.0)
        disk.touch(Question(), [])
        disk.save(rows_of(0), tokens_of)  # does not wait, and says nothing
    disk.touch(Question(), [])
    disk.save(rows_of(0), tokens_of)
    assert set(loaded(disk, 0)) == {KEYS[0]}


def test_a_file_system_without_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    disk = tier(folder)
    disk.save(rows_of(0), tokens_of)
    assert set(loaded(disk, 0)) == {KEYS[0]}


def as_link(path: Path) -> None:
    path.with_name("precious").write_text("precious")
    path.symlink_to(path.with_name("precious"))


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("made", [as_link, as_pipe, Path.mkdir])
def test_what_stands_in_the_place_of_the_journal_is_left_alone(folder: Path, made: Callable[[Path], None]) -> None:
    disk = tier(folder)
    made(folder / ".journal")
    with pytest.warns(FocusWarning, match=r"cannot be written to: .*\.journal"):
        disk.save(rows_of(0), tokens_of)
    assert not (folder / "precious").exists() or (folder / "precious").read_text() == "precious"


@pytest.mark.parametrize("content", [b"", b"nonsense", b"x" * 32 + b"\n", b"\xff" * 500])
def test_a_damaged_journal_is_begun_anew(folder: Path, content: bytes) -> None:
    disk, other = tier(folder, limit=4 * (ONE + 2048)), tier(folder, limit=4 * (ONE + 2048))
    for number in range(12):
        (disk, other)[number % 2].save(rows_of(number), tokens_of)
        if number == 5:
            (folder / ".journal").write_bytes(content)
        if number == 8:
            (folder / ".journal").unlink()
        assert size(folder) <= disk.limit


def test_a_journal_removes_nothing_but_chunks_and_lists(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    disk = tier(folder, limit=3 * (ONE + 2048))
    disk.save(rows_of(0), tokens_of)
    with (folder / ".journal").open("ab") as file:
        file.write(b"5 ../precious\n3 holiday.jpg\n")
    for number in range(1, 8):
        disk.save(rows_of(number), tokens_of)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_line_that_was_not_finished_costs_a_look(folder: Path) -> None:
    disk, other = tier(folder), tier(folder)
    disk.save(rows_of(0), tokens_of)
    other.save(rows_of(1), tokens_of)
    with (folder / ".journal").open("ab") as file:
        file.write(b"123 abc")
    disk.save(rows_of(2), tokens_of)
    other.save(rows_of(3), tokens_of)
    assert set(disk._content.chunks) == set(FolderContent(folder).chunks) - {file_of(folder, 3)}


def test_a_long_journal_is_begun_anew(folder: Path) -> None:
    disk, other = tier(folder), tier(folder)
    for one in (disk, other):
        one._journal.longest = 400
    for number in range(12):
        (disk, other)[number % 2].save(rows_of(number), tokens_of)
        assert (folder / ".journal").stat().st_size < 800
    for one in (disk, other):
        with one._journal.turn() as turn:
            one._count(turn)
        assert {path: file.nbytes for path, file in one._content.chunks.items()}.keys() == FolderContent(
            folder
        ).chunks.keys()


def test_a_fork_writes_too(folder: Path) -> None:
    """filelock refuses a lock that was made before a fork: there was no answer."""
    disk = tier(folder)
    disk.save(rows_of(0), tokens_of)
    child = os.fork()
    if not child:
        try:
            disk.save({KEYS[1]: rows_of(0)[KEYS[0]]}, tokens_of)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    disk.save(rows_of(2), tokens_of)
    assert set(disk._content.chunks) == {file_of(folder, number) for number in range(3)}


def test_trying_the_disk_keeps_to_the_limit_and_the_folder(folder: Path) -> None:
    """A plan measures how fast files are written."""
    disk = tier(folder, limit=5000)
    path = file_of(folder, 0)
    with disk.trying(path, 4000) as fits:
        assert fits
        path.write_bytes(b"x" * 4000)
    assert not path.exists()
    with disk.trying(path, 6000) as fits:
        assert not fits


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(ConfigError, match=r"store=.*Name another folder"):
        tier(tmp_path / "store")


# --- what processes leave behind --------------------------------------------------------------------------------------


@pytest.fixture
def partial(folder: Path) -> Path:
    """A file that a process was writing when it was killed."""
    tier(folder).save(rows_of(0), tokens_of)
    path = file_of(folder, 1)
    return path.with_name(f"{path.name}.999999999-1.partial")


def test_partial_files_of_dead_processes_go(folder: Path, partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial.write_bytes(b"half")
    assert FolderContent(folder).nbytes == size(folder)
    tier(folder)
    assert partial.exists()  # it may belong to a process on another machine
    monkeypatch.setattr("focus_core.cache.folder._LEFT_BEHIND", -1.0)
    tier(folder)
    assert not partial.exists()


def test_numbers_of_processes_come_again(folder: Path, partial: Path) -> None:
    """In a container every process is number 1: what it left behind was nobody's to remove."""
    ours = partial.with_name(partial.name.replace("999999999-1", f"{os.getpid()}-1"))
    for age, stays in (
        (0, True),
        (120, True),
        (10 * 24 * 3600, False),
    ):  # this process is older than two minutes, or not
        ours.write_bytes(b"half")
        os.utime(ours, times=(time.time() - age,) * 2)
        if age == 120:
            stays = psutil.Process().create_time() < time.time() - age
        tier(folder)
        assert ours.exists() == stays


def test_a_file_is_whole_or_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("focus_core.disk.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tier(folder).save(rows_of(0), tokens_of)
    monkeypatch.undo()
    assert {path.name for path in folder.rglob("*.*")} <= {".journal"}


def test_headers_say_what_a_chunk_is(folder: Path) -> None:
    tier(folder).save(rows_of(0), tokens_of)
    header = read_header(file_of(folder, 0))
    assert (header.shape, header.dtype, header.layers, header.tokens) == ((2, 2, 4, 4), torch.float32, 2, 4)
    assert header.metadata["model"] == MODEL


def test_a_document_is_noted_and_found(folder: Path) -> None:
    noted = StoredDocument("12" * 32, "contract.pdf", 8, MODEL, "tiny", (KEYS[0].hex(), KEYS[1].hex()))
    note(tier(folder), noted.name, 0, 1)
    (path,) = FolderContent(folder).documents
    assert StoredDocument.read(path) == noted
    path.write_text('{"chunks": 5}')
    assert StoredDocument.read(path) is None


def spoiled_key(path: Path) -> None:
    path.write_text(path.read_text().replace(KEYS[0].hex(), "no key"))


def spoiled_model(path: Path) -> None:
    path.write_text(path.read_text().replace(MODEL, "../\\u0000"))


@pytest.mark.parametrize("damage", [cut_off, emptied, garbage, spoiled_key, spoiled_model])
def test_a_damaged_list_hides_nothing_for_good(folder: Path, damage: Callable[[Path], None]) -> None:
    disk = tier(folder)
    disk.save(rows_of(0, 1), tokens_of)
    note(disk, "letter", 0, 1)
    note(disk, "caf\udce9.txt", 0, 1)  # a file name that is no UTF-8
    letter = next(one.path for one in list_documents(folder) if one.document.name == "letter")
    damage(letter)
    assert [one.document.name for one in list_documents(folder)] == ["caf\udce9.txt"]
    note(disk, "letter", 0, 1)
    assert {one.document.name for one in list_documents(folder)} == {"letter", "caf\udce9.txt"}
    damage(letter)
    prune(folder, limit=10**9)
    assert not letter.exists()
    (other,) = list_documents(folder)
    assert remove_documents(folder, [other]) > 0
    assert not FolderContent(folder).chunks
    assert not FolderContent(folder).documents
