"""scripts/backup.sh, as PostgreSQL and cron call it, and the guide's `cp` beside it.

The script is copied elsewhere first: for `wal` it must need nothing but itself.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from dr_pipelines.timing import wait_until

SCRIPT = Path(__file__).parents[2] / "scripts" / "backup.sh"
NAME = "000000010000000000000005"
SIZE = 16 << 20
ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="mounts a file system: needs root")


@dataclass(frozen=True)
class Archiver:
    """A data folder with a segment in pg_wal, a spool beside it, and the call that PostgreSQL would make."""

    folder: Path
    script: Path

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def segment(self, content: bytes, name: str = NAME) -> Path:
        """Put a segment into pg_wal."""
        path = self.data / "pg_wal" / name
        path.write_bytes(content)
        return path

    def command(self, name: str = NAME, spool: Path | None = None) -> str:
        return f"DR_SPOOL={spool or self.spool} {self.script} wal pg_wal/{name} {name}"

    def start(self, command: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd=self.data,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def archive(self, name: str = NAME, spool: Path | None = None) -> tuple[int, str]:
        """The exit code, and what was written to PostgreSQL's log."""
        return self.run(self.command(name, spool))

    def run(self, command: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        process = self.start(command, env)
        said, complaint = process.communicate(timeout=60)
        return process.returncode, said + complaint

    def spooled(self) -> list[str]:
        return sorted(os.listdir(self.spool))


@pytest.fixture
def archiver(world_readable_folder: Path) -> Archiver:
    (world_readable_folder / "spool").mkdir()
    (world_readable_folder / "data" / "pg_wal").mkdir(parents=True)
    script = world_readable_folder / "elsewhere" / "backup.sh"
    script.parent.mkdir()
    shutil.copy(SCRIPT, script)
    return Archiver(world_readable_folder, script)


@pytest.fixture
def small_disk(world_readable_folder: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = world_readable_folder / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def content(seed: int = 1, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_segment_is_copied_under_its_name_and_nothing_else_is_left(archiver: Archiver) -> None:
    archiver.segment(content())
    assert archiver.archive() == (0, "")
    assert archiver.spooled() == [NAME]
    assert (archiver.spool / NAME).read_bytes() == content()


def test_the_group_may_read_what_is_spooled_and_others_may_not(archiver: Archiver) -> None:
    archiver.segment(content())
    archiver.archive()
    assert (archiver.spool / NAME).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["00000002.history", f"{NAME}.00000028.backup", f"{NAME}.partial"])
def test_every_kind_of_archived_file_is_taken(archiver: Archiver, name: str) -> None:
    archiver.segment(b"1\t0/5000060\tno recovery target specified\n", name)
    assert archiver.archive(name) == (0, "")
    assert archiver.spooled() == [name]


def test_the_same_file_again_is_fine(archiver: Archiver) -> None:
    archiver.segment(content())
    assert archiver.archive()[0] == 0
    before = (archiver.spool / NAME).stat()
    assert archiver.archive() == (0, "")
    assert (archiver.spool / NAME).stat().st_ino == before.st_ino
    assert archiver.spooled() == [NAME]


def test_other_content_is_refused_with_a_message_and_not_replaced(archiver: Archiver) -> None:
    archiver.segment(content(1))
    archiver.archive()
    archiver.segment(content(2))
    code, said = archiver.archive()
    assert code == 1
    assert NAME in said
    assert "OTHER CONTENT" in said
    assert (archiver.spool / NAME).read_bytes() == content(1)
    assert archiver.spooled() == [NAME]


def test_a_torn_file_under_the_final_name_is_other_content(archiver: Archiver) -> None:
    archiver.segment(content())
    (archiver.spool / NAME).write_bytes(content()[: SIZE // 2])
    assert archiver.archive()[0] == 1


def test_two_at_once_leave_one_whole_file(archiver: Archiver) -> None:
    archiver.segment(content())
    processes = [archiver.start(archiver.command()) for _ in range(4)]
    assert [process.communicate(timeout=60) for process in processes] == [("", "")] * 4
    assert [process.returncode for process in processes] == [0] * 4
    assert archiver.spooled() == [NAME]
    assert (archiver.spool / NAME).read_bytes() == content()


def test_what_killed_runs_left_is_cleaned_and_a_living_run_keeps_its_own(archiver: Archiver) -> None:
    archiver.segment(content())
    gone = subprocess.Popen(["/bin/true"])
    other = "000000010000000000000004"
    alive = subprocess.Popen(["/bin/sh", "-c", "sleep 60; :", "backup.sh", "wal", f"pg_wal/{other}", other])
    try:
        kept = archiver.spool / f".{other}.{alive.pid}.tmp"
        lock = archiver.spool / ".agent.lock"
        # The first is a zombie until it is waited for; the second process's number means something else by now.
        left = [archiver.spool / f".{NAME}.{pid}.tmp" for pid in (gone.pid, os.getpid())]
        for path in (kept, lock, *left):
            path.write_bytes(b"half")
        assert archiver.archive()[0] == 0
        assert archiver.spooled() == sorted([kept.name, lock.name, NAME])
    finally:
        alive.kill()
        alive.wait()
        gone.wait()


@as_root
def test_a_full_disk_is_an_error_that_leaves_nothing(archiver: Archiver, small_disk: Path) -> None:
    archiver.segment(content())
    code, said = archiver.archive(spool=small_disk)
    assert code == 1
    assert "No space left" in said
    assert list(small_disk.iterdir()) == []


@as_root
def test_a_read_only_spool_is_an_error_with_a_message(archiver: Archiver, small_disk: Path) -> None:
    archiver.segment(content(size=1 << 20))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    code, said = archiver.archive(spool=small_disk)
    assert code == 1
    assert "Read-only" in said


def test_a_missing_spool_is_not_made_since_its_disk_may_not_be_mounted(archiver: Archiver) -> None:
    archiver.segment(content())
    archiver.spool.rmdir()
    code, said = archiver.archive()
    assert code == 2
    assert "install -d" in said
    assert not archiver.spool.exists()


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("DR_SPOOL= {script} wal pg_wal/x x", "DR_SPOOL is not set"),
        ("DR_SPOOL={spool} {script} wal pg_wal/x ../x", "is not a name"),
        ("DR_SPOOL={spool} {script} wal pg_wal/x .x", "is not a name"),
        ("DR_SPOOL={spool} {script} wal pg_wal/x ''", "is not a name"),
        ("DR_SPOOL={spool} {script} wal pg_wal/none none", "is not there"),
        ("DR_SPOOL={spool} {script} wal pg_wal/x", "usage"),
        ("DR_SPOOL={spool} {script}", "usage"),
        ("DR_SPOOL={spool} {script} restore", "usage"),
    ],
)
def test_a_wrong_call_says_what_is_right(archiver: Archiver, command: str, match: str) -> None:
    archiver.segment(b"x", "x")
    code, said = archiver.run(command.format(spool=archiver.spool, script=archiver.script))
    assert code == 2
    assert match in said
    assert archiver.spooled() == []


def test_a_missing_tool_gives_no_code_that_restarts_the_archiver(archiver: Archiver) -> None:
    archiver.segment(content())
    code, said = archiver.run(archiver.command(), env={"PATH": "/nonexistent"})
    assert 0 < code < 126, said
    assert archiver.spooled() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_a_signal_gives_no_code_that_restarts_the_archiver_and_leaves_nothing(
    archiver: Archiver, number: signal.Signals
) -> None:
    fifo = archiver.data / "pg_wal" / NAME
    fifo.write_bytes(content())
    # `dd` is held until the signal has come.
    tools = archiver.folder / "tools"
    tools.mkdir()
    (tools / "dd").write_text(f"#!/bin/sh\ntouch {archiver.folder}/reached\nexec sleep 60\n")
    (tools / "dd").chmod(0o755)
    env = {"PATH": f"{tools}:/usr/bin:/bin"}
    process = archiver.start(f"exec env {archiver.command()}", env)
    assert wait_until((archiver.folder / "reached").exists, timeout=20)
    os.killpg(process.pid, number)
    process.communicate(timeout=20)
    assert 0 < process.returncode < 126
    assert archiver.spooled() == []


def test_the_copy_is_on_disk_before_it_has_its_name_and_the_name_before_the_end(archiver: Archiver) -> None:
    archiver.segment(content())
    tools, calls = archiver.folder / "tools", archiver.folder / "calls"
    tools.mkdir()
    for tool in ("dd", "cmp", "link", "sync", "rm"):
        real = shutil.which(tool)
        (tools / tool).write_text(f'#!/bin/sh\necho "{tool} $*" >> {calls}\nexec {real} "$@"\n')
        (tools / tool).chmod(0o755)
    assert archiver.run(archiver.command(), env={"PATH": f"{tools}:/usr/bin:/bin"}) == (0, "")
    steps = calls.read_text().splitlines()
    assert [step.split()[0] for step in steps] == ["dd", "cmp", "link", "sync", "rm"]
    assert "conv=excl,fsync" in steps[0]
    assert steps[3] == f"sync {archiver.spool}"


@pytest.mark.parametrize("seed", range(12))
def test_killed_at_any_moment_nothing_torn_has_the_final_name_and_the_next_run_succeeds(
    archiver: Archiver, seed: int
) -> None:
    archiver.segment(content())
    dice = random.Random(seed)
    for _ in range(5):
        process = archiver.start(archiver.command())
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=dice.uniform(0, 0.04))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)
        final = archiver.spool / NAME
        assert not final.exists() or final.read_bytes() == content()
        if dice.random() < 0.5:
            final.unlink(missing_ok=True)
    assert archiver.archive()[0] == 0
    assert archiver.spooled() == [NAME]
    assert (archiver.spool / NAME).read_bytes() == content()


class TestGuidesCopy:
    """`archive_command = 'cp %p …/%f'`: the counter-example. Each test shows what it allows."""

    def test_it_replaces_other_content_without_a_word(self, archiver: Archiver) -> None:
        for seed in (1, 2):
            archiver.segment(content(seed))
            assert archiver.run(f"cp pg_wal/{NAME} {archiver.spool}/{NAME}") == (0, "")
        assert (archiver.spool / NAME).read_bytes() == content(2)

    @as_root
    def test_a_full_disk_leaves_a_torn_file_under_the_final_name(self, archiver: Archiver, small_disk: Path) -> None:
        archiver.segment(content())
        code, _ = archiver.run(f"cp pg_wal/{NAME} {small_disk}/{NAME}")
        assert code != 0
        assert 0 < (small_disk / NAME).stat().st_size < SIZE

    def test_a_killed_run_leaves_a_torn_file_under_the_final_name(self, archiver: Archiver) -> None:
        source = archiver.data / "pg_wal" / NAME
        os.mkfifo(source)
        process = archiver.start(f"exec cp --copy-contents pg_wal/{NAME} {archiver.spool}/{NAME}")
        with source.open("wb", buffering=0) as half:
            half.write(b"x" * 4096)
            torn = archiver.spool / NAME
            assert wait_until(lambda: torn.exists() and torn.stat().st_size > 0, timeout=20)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=20)
        assert torn.stat().st_size == 4096

    def test_with_test_f_before_it_jams_for_ever_after_a_kill(self, archiver: Archiver) -> None:
        archiver.segment(content())
        (archiver.spool / NAME).write_bytes(content())
        assert archiver.run(f"test ! -f {archiver.spool}/{NAME} && cp pg_wal/{NAME} {archiver.spool}/{NAME}")[0] == 1
        assert archiver.archive()[0] == 0


class TestFull:
    """`backup.sh full`, as cron calls it: from the home folder, with a short PATH."""

    @pytest.fixture
    def checkout(self, world_readable_folder: Path) -> Path:
        checkout = world_readable_folder / "checkout"
        (checkout / "scripts").mkdir(parents=True)
        shutil.copy(SCRIPT, checkout / "scripts" / "backup.sh")
        return checkout

    @staticmethod
    def dr(path: Path, code: int = 0) -> None:
        """A command that says how it was called."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "{path.name}: $* plan=${{DR_PLAN-}} spool=${{DR_SPOOL-}}"\nexit {code}\n')
        path.chmod(0o755)

    @staticmethod
    def cron(script: Path, *arguments: str, **env: str) -> tuple[int, str]:
        done = subprocess.run(
            [script, *arguments], cwd="/", env={"PATH": "/usr/bin:/bin"} | env, capture_output=True, text=True
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    def test_the_checkouts_own_dr_is_called_for_the_database(self, checkout: Path) -> None:
        self.dr(checkout / ".venv/bin/dr")
        assert self.cron(checkout / "scripts/backup.sh", "full") == (0, "dr: backup full database plan= spool=")

    def test_a_link_to_the_script_finds_the_checkout(self, checkout: Path) -> None:
        self.dr(checkout / ".venv/bin/dr")
        link = checkout.parent / "backup"
        link.symlink_to(checkout / "scripts/backup.sh")
        assert self.cron(link, "full", "pms")[1].startswith("dr: backup full pms")
        assert self.cron(link, "incremental")[1].startswith("dr: backup incremental database")
        assert self.cron(link, "incremental", "pms")[1].startswith("dr: backup incremental pms")

    def test_the_checkouts_plan_is_used_unless_another_is_named(self, checkout: Path) -> None:
        self.dr(checkout / ".venv/bin/dr")
        (checkout / "recovery-plan.yaml").touch()
        script = checkout / "scripts/backup.sh"
        assert f"plan={checkout}/recovery-plan.yaml" in self.cron(script, "full")[1]
        assert "plan=/etc/plan.yaml" in self.cron(script, "full", DR_PLAN="/etc/plan.yaml")[1]

    def test_the_archivers_spool_is_not_passed_on(self, checkout: Path) -> None:
        self.dr(checkout / ".venv/bin/dr")
        assert self.cron(checkout / "scripts/backup.sh", "full", DR_SPOOL="/spool")[1].endswith("spool=")

    def test_dr_command_comes_first_and_path_last(self, checkout: Path) -> None:
        script = checkout / "scripts/backup.sh"
        self.dr(checkout.parent / "bin/dr")
        path = f"{checkout.parent}/bin:/usr/bin:/bin"
        assert self.cron(script, "full", PATH=path)[1].startswith("dr: ")
        self.dr(checkout.parent / "other")
        self.dr(checkout / ".venv/bin/dr")
        assert self.cron(script, "full", DR_COMMAND=f"{checkout.parent}/other")[1].startswith("other: ")

    def test_without_dr_it_says_what_to_set(self, checkout: Path) -> None:
        code, said = self.cron(checkout / "scripts/backup.sh", "full")
        assert code == 2
        assert "DR_COMMAND" in said

    @pytest.mark.parametrize("code", [1, 2, 3])
    def test_the_exit_code_is_that_of_dr(self, checkout: Path, code: int) -> None:
        self.dr(checkout / ".venv/bin/dr", code)
        assert self.cron(checkout / "scripts/backup.sh", "full")[0] == code


def test_shellcheck_has_nothing_to_say() -> None:
    beside = Path(sys.executable).parent
    shellcheck = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
    assert shellcheck is not None
    assert subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True).stdout == ""
