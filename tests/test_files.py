"""Files written whole, all of a run or none, and what is said when they cannot be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from batches import accounts, rebalancer

from equipoise import InputError
from equipoise.optimizer.batches import whole_files
from equipoise.optimizer.batches.run import run, write


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(paths: list[Path], text: bytes) -> None:
    with whole_files.replaced(paths) as opened:
        for file in opened:
            file.write(text)


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """The system refuses to write more, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_files_appear_when_the_context_ends(tmp_path: Path) -> None:
    put([tmp_path / "a"], b"old")
    with whole_files.replaced([tmp_path / "a", tmp_path / "new" / "b"]) as (a, b):
        a.write(b"1")
        b.write(b"2")
        assert (tmp_path / "a").read_bytes() == b"old"
        assert not (tmp_path / "new" / "b").exists()
    assert (tmp_path / "new" / "b").read_bytes() == b"2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "new"]
    assert (tmp_path / "a").read_bytes() == b"1"


@pytest.mark.parametrize("fails_at", [0, 1, 2])
@pytest.mark.parametrize("links", [True, False])
def test_if_one_cannot_be_renamed_none_is(
    fails_at: int, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    put(paths[:2], b"old")
    replace, done = Path.replace, []

    def failing(self: Path, target: Any) -> Path:
        done.append(target)
        if len(done) == fails_at + 1:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return replace(self, target)

    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(InputError, match=r"[abc]: cannot be written to: Operation not.*name a place that may be"):
        put(paths, b"new")
    if links:
        assert content(tmp_path) == {"a": b"old", "b": b"old"}
    assert not [name for name in content(tmp_path) if whole_files.is_part(name)]


def test_what_a_killed_run_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    left = tmp_path / f".orders.csv.{'0' * 32}.part"
    left.write_text("half")
    others = [tmp_path / ".orders.csv.part", tmp_path / f"orders.csv.{'0' * 32}.part", tmp_path / f".x.{'0' * 31}.part"]
    for path in others:
        path.write_text("not ours")
    with whole_files.replaced([tmp_path / "orders.csv"]) as (file,):
        file.write(b"whole")
        whole_files.clean(tmp_path)
        assert not left.exists()
    assert (tmp_path / "orders.csv").read_bytes() == b"whole"
    assert all(path.exists() for path in others)
    whole_files.clean(tmp_path / "not there")


def test_every_writer_cleans_up_after_a_run_that_was_killed(tmp_path: Path) -> None:
    def litter(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / f".any.{'f' * 32}.part").write_text("half")

    for folder in (tmp_path / "out", tmp_path / "kept"):
        litter(folder)
    write(rebalancer().policy, accounts(1), orders=tmp_path / "out" / "orders.csv", checkpoint=tmp_path / "kept")
    assert sorted(content(tmp_path / "out")) == ["orders.csv"]
    assert sorted(content(tmp_path / "kept")) == ["chunk-00000000.bin", "lock", "run.json"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_full_disk_is_said_with_the_path_and_costs_no_file(suffix: str, tmp_path: Path) -> None:
    paths = {what: tmp_path / f"{what}.{suffix}" for what in ("results", "orders")}
    write(rebalancer().policy, accounts(1), **paths)
    before = content(tmp_path)
    with (
        pytest.raises(InputError, match=rf"results\.{suffix}: cannot be written to: File too large; make room"),
        no_file_longer_than(1000),
    ):
        write(rebalancer().policy, accounts(200), **paths)
    assert content(tmp_path) == before


def test_a_full_disk_costs_no_finished_chunk(tmp_path: Path) -> None:
    kept, table = tmp_path / "kept", accounts(8)
    list(run(rebalancer().policy, table, chunk=20, checkpoint=kept))
    whole = content(kept)
    (kept / "chunk-00000001.bin").unlink()
    with (
        pytest.raises(InputError, match=r"chunk-00000001\.bin: cannot be written to: File too large; make room"),
        no_file_longer_than(1000),
    ):
        list(run(rebalancer().policy, table, chunk=20, checkpoint=kept))
    assert content(kept) == {name: data for name, data in whole.items() if name != "chunk-00000001.bin"}
    list(run(rebalancer().policy, table, chunk=20, checkpoint=kept))
    assert content(kept) == whole


def test_a_file_where_a_folder_is_needed_and_a_folder_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "orders.csv").mkdir()
    with pytest.raises(InputError, match=r"o\.csv: cannot be written to.*a file stands where a folder is needed"):
        write(rebalancer().policy, accounts(1), orders=tmp_path / "file" / "o.csv")
    with pytest.raises(
        InputError, match=r"orders\.csv: cannot be written to.*a folder stands where the file is wanted"
    ):
        write(rebalancer().policy, accounts(1), orders=tmp_path / "orders.csv")
    with pytest.raises(InputError, match=r"file: cannot be written to.*a file stands where a folder is needed"):
        list(run(rebalancer().policy, accounts(1), checkpoint=tmp_path / "file"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "orders.csv"]
