"""Data brought to disk in the background: nothing that did not get there is missed, whoever hears of it first."""

import ctypes
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dr_pipelines.engines.layout import WholeBackup
from dr_pipelines.engines.parts import PartReader
from dr_pipelines.engines.writeback import Writeback
from dr_pipelines.repository.folder import FolderStore
from tests.engines.test_parts import quiet, write

LOST = "Input/output error|No space left"
"""What the kernel says of data that it could not write, depending on how it tried."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")


@dataclass(frozen=True)
class ThinDisk:
    """A file system that promises 64 MiB on a disk that has fewer: what does not fit is lost in the background."""

    backing: Path
    mounted: Path

    def grow(self) -> None:
        """Let it hold what it promises from now on."""
        subprocess.run(["mount", "-o", "remount,size=100m", self.backing], check=True)

    def sync(self) -> int:
        """What another process may do at any time: 0, or what the kernel tells it, and would tell nobody later."""
        descriptor = os.open(self.mounted, os.O_RDONLY)
        try:
            library = ctypes.CDLL(None, use_errno=True)
            return 0 if library.syncfs(descriptor) == 0 else ctypes.get_errno()
        finally:
            os.close(descriptor)


@pytest.fixture
def thin_disk(world_readable_folder: Path) -> Iterator[ThinDisk]:
    disk = ThinDisk(world_readable_folder / "backing", world_readable_folder / "mounted")
    for place in (disk.backing, disk.mounted):
        place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk.backing], check=True)
    try:
        image = disk.backing / "image"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, disk.mounted], check=True)
        try:
            yield disk
        finally:
            subprocess.run(["umount", disk.mounted], check=True)
    finally:
        subprocess.run(["umount", disk.backing], check=True)


@as_root
def test_an_error_of_the_background_is_raised_though_somebody_else_was_told_of_it(thin_disk: ThinDisk) -> None:
    with Writeback(thin_disk.mounted) as writeback:
        with (thin_disk.mounted / "file").open("wb") as file:
            file.write(random.Random(1).randbytes(20 << 20))
            file.flush()
            writeback.begin(file.fileno(), 0, 20 << 20)
        assert thin_disk.sync() != 0
        thin_disk.grow()
        assert thin_disk.sync() == 0
        with pytest.raises(OSError, match=LOST):
            writeback.finish()


@as_root
def test_a_restore_whose_files_did_not_reach_the_disk_fails_and_writes_all_of_them_again(
    thin_disk: ThinDisk, tmp_path: Path
) -> None:
    store, target = FolderStore(tmp_path / "store"), thin_disk.mounted / "target"
    files = {"base/1": random.Random(1).randbytes(12 << 20)}
    manifest = write(store, files, part_size=2 << 20)
    target.mkdir()
    reader = PartReader(store, WholeBackup(manifest), target, journal=tmp_path / "journal", owner=None, workers=2)
    with pytest.raises(OSError, match=LOST):
        reader.restore(quiet)
    thin_disk.grow()
    assert reader.restore(quiet) == len(manifest.parts)
    subprocess.run(["umount", thin_disk.mounted], check=True)
    subprocess.run(["mount", "-o", "loop", thin_disk.backing / "image", thin_disk.mounted], check=True)
    assert (target / "base" / "1").read_bytes() == files["base/1"]
