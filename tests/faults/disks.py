"""File systems of some megabytes, to be filled up, made larger, made read-only and broken while they are used."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MIB = 1 << 20


def _can_break_a_disk() -> bool:
    return os.geteuid() == 0 and Path("/sys/fs/ext4").is_dir() and Path("/dev/loop-control").exists()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")
needs_loop = pytest.mark.skipif(not _can_break_a_disk(), reason="breaks an ext4 in a file: needs root and loop devices")


@dataclass(frozen=True)
class Disk:
    """A file system in memory, mounted on `folder`."""

    folder: Path

    def remount(self, *options: str) -> None:
        subprocess.run(["mount", "-o", ",".join(["remount", *options]), self.folder], check=True)

    def resize(self, size: int) -> None:
        """Give it so many bytes in all; what is on it stays."""
        self.remount(f"size={size}")

    def leave_free(self, free: int) -> None:
        """Let no more bytes be free than these, as if somebody had filled it."""
        status = os.statvfs(self.folder)
        self.resize((status.f_blocks - status.f_bfree) * status.f_frsize + free)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Where nothing in it is open for writing."""
        self.remount("ro")
        try:
            yield
        finally:
            self.remount("rw")


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[Disk]:
    """Mount a new file system on the folder, which is made where it is not there, and belongs to whom it belonged."""
    folder.mkdir(exist_ok=True)
    owner = folder.stat()
    options = f"size={size},mode={owner.st_mode & 0o7777:o},uid={owner.st_uid},gid={owner.st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield Disk(folder)
    finally:
        # What a killed process still has open would keep it busy.
        subprocess.run(["umount", "--lazy", folder], check=True)


@dataclass(frozen=True)
class BrokenDisk:
    """An ext4 in a file, mounted on `folder`, that turns read-only by an error as it is usual."""

    folder: Path
    image: Path

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", self.image, self.folder], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", self.folder], check=True)

    def fail(self) -> None:
        """Let the kernel meet an error on it: whoever has files open there cannot write to them any more."""
        source = subprocess.run(
            ["findmnt", "--noheadings", "--output", "SOURCE", self.folder], check=True, capture_output=True, text=True
        ).stdout.strip()
        Path(f"/sys/fs/ext4/{Path(source).name}/trigger_fs_error").write_text("1")

    def mend(self) -> None:
        """As a person does when nothing uses it any more: check it, and mount it again."""
        self.unmount()
        done = subprocess.run(["fsck.ext4", "-y", self.image], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stdout
        self.mount()


@contextlib.contextmanager
def breakable(folder: Path, size: int) -> Iterator[BrokenDisk]:
    """Mount a new ext4 on the folder, which is made where it is not there; it is empty, and root's."""
    folder.mkdir(exist_ok=True)
    image = folder.with_name(f"{folder.name}.ext4")
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True)
    made = BrokenDisk(folder, image)
    made.mount()
    try:
        (folder / "lost+found").rmdir()
        yield made
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        image.unlink()
