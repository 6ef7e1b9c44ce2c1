import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from dr_pipelines.errors import MissingSoftware, ProcessError, UsageError
from dr_pipelines.processes import proc
from dr_pipelines.processes.leases import FOLDER_MARK, Lease, Leases
from dr_pipelines.timing import FakeClock, wait_until

HOUR = timedelta(hours=1)
AnotherPython = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def log(world_readable_folder: Path) -> Path:
    return world_readable_folder / "log"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def timed(state: Path, clock: FakeClock, leases: Leases) -> Leases:
    """Leases whose time is that of `clock`."""
    return Leases(state, clock)


def sleeper(
    leases: Leases, log: Path, *, owner: str = "me", ttl: timedelta = HOUR, folders: tuple[Path, ...] = ()
) -> Lease:
    return leases.start(["sleep", "1000"], kind="sleeper", owner=owner, log=log, ttl=ttl, folders=folders)


def scratch(state: Path, name: str = "scratch") -> Path:
    folder = state / name
    folder.mkdir()
    (folder / "file").write_text("content")
    return folder


def family_of(leases: Leases, log: Path, script: str, count: int) -> tuple[Lease, list[int]]:
    """A leased shell, and the process ids it printed once there are `count` of them."""
    lease = leases.start(
        ["sh", "-c", script], kind="family", owner="me", log=log, ttl=HOUR, wait_for=lambda: len(numbers(log)) == count
    )
    return lease, numbers(log)


def numbers(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().splitlines()] if log.exists() else []


def lives(pid: int) -> bool:
    process = proc.look_up(pid)
    return process is not None and not process.dead


# --- starting


def test_a_leased_process_runs_in_its_own_session_with_its_output_in_the_log(leases: Leases, log: Path) -> None:
    lease = leases.start(
        ["sh", "-c", "echo out; echo err >&2; cat; sleep 1000"],
        kind="shell",
        owner="me",
        log=log,
        ttl=HOUR,
        wait_for=lambda: log.read_text() == "out\nerr\n",
    )
    process = proc.look_up(lease.pid)
    assert process is not None
    assert process.session == process.pid != os.getsid(0)
    assert leases.alive(lease)
    assert leases.of("me") == [lease]
    assert leases.of("me", kind="other") == []
    assert leases.of("you") == []


def test_another_user_of_the_state_folder_finds_the_same_lease(leases: Leases, state: Path, log: Path) -> None:
    lease = sleeper(leases, log)
    assert Leases(state).all() == [lease]
    assert lease.argv[1:] == ("1000",)
    assert lease.holder_pid == os.getpid()


def test_the_environment_is_cleaned_and_marked(leases: Leases, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "production")
    leases.start(
        ["sh", "-c", "env; echo done; sleep 1000"],
        kind="env",
        owner="me",
        env={"MINE": "1"},
        log=log,
        ttl=HOUR,
        wait_for=lambda: "done" in log.read_text(),
    )
    said = log.read_text()
    assert "PGHOST" not in said
    assert "MINE=1" in said
    assert "DR_LEASE=" in said


def test_arguments_reach_the_program_as_they_are(leases: Leases, log: Path) -> None:
    odd = ["a b", "$HOME", "'", '"', "\\", "", "*"]
    script = "import sys; print(sys.argv[1:])"
    leases.start([sys.executable, "-c", script, *odd], kind="args", owner="me", log=log, ttl=HOUR)
    assert wait_until(lambda: log.read_text() == f"{odd}\n", timeout=10)


def test_a_process_that_ends_while_it_starts_is_an_error_with_the_end_of_its_own_output(
    leases: Leases, log: Path
) -> None:
    log.write_text("of an earlier process\n")
    with pytest.raises(ProcessError, match=r"ended while it started: no room$"):
        leases.start(
            ["sh", "-c", "echo no room; exit 1"],
            kind="shell",
            owner="me",
            log=log,
            ttl=HOUR,
            wait_for=lambda: False,
            timeout=60,
        )
    assert leases.all() == []


def test_a_process_that_is_not_ready_in_time_is_killed(leases: Leases, log: Path) -> None:
    with pytest.raises(ProcessError, match=r"not ready 0.3 s after its start"):
        leases.start(
            ["sh", "-c", "echo $$; exec sleep 1000"],
            kind="shell",
            owner="me",
            log=log,
            ttl=HOUR,
            wait_for=lambda: False,
            timeout=0.3,
        )
    assert leases.all() == []
    assert not lives(numbers(log)[0])


def test_a_program_that_is_not_there_is_missing_software_and_leaves_no_lease(leases: Leases, log: Path) -> None:
    with pytest.raises(MissingSoftware, match="no-such-program"):
        leases.start(["no-such-program"], kind="none", owner="me", log=log, ttl=HOUR)
    assert leases.all() == []


# --- alive


def test_a_process_that_ended_is_not_alive_and_no_zombie(leases: Leases, log: Path) -> None:
    lease = leases.start(["true"], kind="short", owner="me", log=log, ttl=HOUR)
    assert wait_until(lambda: proc.look_up(lease.pid) is None, timeout=5)
    assert not leases.alive(lease)


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        started = proc.look_up(process.pid)
        process.send_signal(signal.SIGKILL)
        assert started is not None
        assert wait_until(lambda: not proc.is_alive(*started.key), timeout=5)
        assert proc.look_up(process.pid) is not None


def test_a_process_whose_name_looks_like_a_status_line_is_read_right() -> None:
    line = "7 (a) Z 1 (b c) S 3 7 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1\n"
    process = proc.parse_stat(line)
    assert (process.pid, process.name, process.state) == (7, "a) Z 1 (b c", "S")
    assert (process.parent, process.session, process.start_ticks) == (3, 9, 4711)


# --- killing and ending


def test_kill_takes_children_that_left_the_session_and_those_that_were_orphaned(leases: Leases, log: Path) -> None:
    script = """
        sh -c 'echo $$; exec sleep 1000' &
        setsid sh -c 'echo $$; sleep 1000 & echo $!; wait' &
        sh -c 'sleep 1000 & echo $!'
        sh -c 'env -i sleep 1000 & echo $!'
        wait
    """
    lease, pids = family_of(leases, log, script, count=5)
    assert all(lives(pid) for pid in pids)
    leases.kill(lease)
    assert not any(lives(pid) for pid in (lease.pid, *pids))


def test_kill_takes_what_a_process_that_is_dead_already_left_behind(leases: Leases, log: Path) -> None:
    lease = leases.start(["sh", "-c", "setsid sleep 1000 & echo $!"], kind="family", owner="me", log=log, ttl=HOUR)
    assert wait_until(lambda: not leases.alive(lease) and numbers(log), timeout=5)
    (orphan,) = numbers(log)
    assert lives(orphan)
    leases.kill(lease)
    assert not lives(orphan)


def test_kill_takes_processes_that_go_on_multiplying(leases: Leases, log: Path) -> None:
    # Each child leaves session and environment behind: only its living parent leads to it.
    argument = f"3.{os.getpid()}"
    child = f"env -i setsid sleep {argument}"
    script = f"f() {{ while :; do {child} & sleep 0.003; done; }}; f & f & f & f & sleep 0.1; echo $$; wait"
    lease, _ = family_of(leases, log, script, count=1)
    leases.kill(lease)
    assert [pid for pid in proc.all_processes() if argument in command(pid)] == []


def environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def test_kill_leaves_alone_what_has_a_lease_of_its_own(leases: Leases, state: Path, log: Path) -> None:
    script = f"""
from datetime import timedelta; from pathlib import Path; import signal
from dr_pipelines.processes.leases import Leases
Leases(Path({str(state)!r})).start(
    ["sleep", "1000"], kind="sleeper", owner="other", log=Path({str(log)!r}), ttl=timedelta(hours=1))
signal.pause()
"""
    outer = leases.start(
        [sys.executable, "-c", script],
        kind="python",
        owner="me",
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        log=log,
        ttl=HOUR,
        wait_for=lambda: leases.of("other") and leases.of("other")[0].pid,
    )
    (inner,) = leases.of("other")
    leases.kill(outer)
    assert not leases.alive(outer)
    assert leases.alive(inner)


def test_a_killed_processs_lease_is_forgotten(leases: Leases, state: Path, log: Path) -> None:
    leases.kill(sleeper(leases, log))
    assert [path.name for path in (state / "leases").iterdir()] == [".lock"]


def test_end_asks_first(leases: Leases, log: Path) -> None:
    lease = leases.start(
        ["sh", "-c", "trap 'echo asked; exit' TERM; echo ready; while :; do sleep 0.05; done"],
        kind="shell",
        owner="me",
        log=log,
        ttl=HOUR,
        wait_for=lambda: "ready" in log.read_text(),
    )
    leases.end(lease)
    assert log.read_text() == "ready\nasked\n"
    assert not leases.alive(lease)


def test_end_kills_who_does_not_listen(leases: Leases, log: Path) -> None:
    lease = leases.start(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"],
        kind="shell",
        owner="me",
        log=log,
        ttl=HOUR,
        wait_for=lambda: "ready" in log.read_text(),
    )
    leases.end(lease, timeout=0.2)
    assert not leases.alive(lease)


def test_an_owner_is_ended_with_all_it_has_and_nobody_else(leases: Leases, state: Path, log: Path) -> None:
    mine = [
        sleeper(leases, log, folders=(scratch(state, "one"),)),
        sleeper(leases, log, folders=(scratch(state, "two"),)),
    ]
    yours = sleeper(leases, log, owner="you", folders=(scratch(state, "three"),))
    leases.end_owner("me")
    assert not any(leases.alive(lease) for lease in mine)
    assert leases.alive(yours)
    assert leases.all() == [yours]
    assert sorted(path.name for path in state.iterdir()) == ["leases", "three"]


# --- reaping


def test_what_has_expired_is_reaped_with_its_folders(timed: Leases, clock: FakeClock, state: Path, log: Path) -> None:
    folder = scratch(state)
    short = sleeper(timed, log, ttl=timedelta(minutes=1), folders=(folder,))
    long = sleeper(timed, log, ttl=HOUR)
    assert timed.reap() == []
    clock.advance(60)
    assert timed.reap() == [short]
    assert not timed.alive(short)
    assert not folder.exists()
    assert timed.alive(long)
    assert timed.all() == [long]


def test_what_was_renewed_is_not_reaped(timed: Leases, clock: FakeClock, log: Path) -> None:
    lease = sleeper(timed, log, ttl=timedelta(minutes=1))
    timed.renew("me", HOUR)
    clock.advance(60)
    assert timed.reap() == []
    assert timed.alive(lease)


@pytest.mark.slow
def test_leases_are_kept_renewed_within_the_block_and_not_after(leases: Leases, log: Path) -> None:
    lease = sleeper(leases, log, ttl=timedelta(seconds=0))
    with leases.keep_renewed("me", timedelta(seconds=3)):
        first = leases.all()[0].expires_at
        assert wait_until(lambda: leases.all()[0].expires_at - first > timedelta(seconds=3), timeout=20)
        assert leases.reap() == []
    assert wait_until(lambda: [each.id for each in leases.reap()] == [lease.id], timeout=10)
    assert not leases.alive(lease)


def test_a_process_that_ended_by_itself_is_forgotten_unless_it_has_folders(
    leases: Leases, state: Path, log: Path
) -> None:
    plain = leases.start(["true"], kind="short", owner="me", log=log, ttl=HOUR)
    kept = leases.start(["true"], kind="short", owner="me", log=log, ttl=HOUR, folders=(scratch(state),))
    assert wait_until(lambda: not leases.alive(plain) and not leases.alive(kept), timeout=5)
    assert leases.reap() == []
    assert leases.all() == [kept]


def test_what_a_killed_reaper_left_half_done_is_finished(timed: Leases, state: Path, log: Path) -> None:
    folder = scratch(state)
    lease = sleeper(timed, log, folders=(folder,))
    (state / "leases" / f"{lease.id}.json").rename(state / "leases" / f"{lease.id}.ending")
    folder.rename(folder.parent / f".removed-{folder.name}-{lease.id}")
    timed.renew("me", HOUR)
    assert timed.all() == []
    timed.reap()
    assert not timed.alive(lease)
    assert [path.name for path in state.iterdir()] == ["leases"]
    assert [path.name for path in (state / "leases").iterdir()] == [".lock"]


def test_many_at_a_time_get_in_nobodys_way(leases: Leases, state: Path, log: Path) -> None:
    def life(number: int) -> bool:
        mine = Leases(state)
        lease = sleeper(mine, log, owner=f"owner {number}", folders=(scratch(state, f"scratch {number}"),))
        mine.renew(f"owner {number}", HOUR)
        mine.reap()
        alive = mine.alive(lease)
        mine.end_owner(f"owner {number}")
        return alive and not mine.alive(lease)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(life, range(24)))
    assert leases.all(ending=True) == []
    assert [path.name for path in state.iterdir()] == ["leases"]


# --- a parent that is killed

STARTS_ONE = """
from datetime import timedelta
from dr_pipelines.processes.leases import Leases
lease = Leases(state).start(
    ["sh", "-c", "setsid sleep 1000 & wait"],
    kind="family", owner="me", log=state / "log", ttl=timedelta(hours=1), folders=[state / "scratch"])
print(lease.id, flush=True)
input()
"""


def test_a_process_outlives_its_killed_parent_and_is_found_and_reaped(
    leases: Leases, state: Path, another_python: AnotherPython
) -> None:
    folder = scratch(state)
    parent = another_python(STARTS_ONE)
    assert parent.stdout
    lease_id = parent.stdout.readline().strip()
    assert leases.reap(dead_holders=lambda lease: True) == [], "its holder still lives"
    parent.kill()
    parent.wait()
    (lease,) = leases.all()
    assert lease.id == lease_id
    assert leases.alive(lease)
    assert leases.reap() == []
    assert leases.reap(dead_holders=lambda lease: lease.owner == "somebody") == []
    assert leases.reap(dead_holders=lambda lease: lease.owner == "me") == [lease]
    assert not leases.alive(lease)
    assert not folder.exists()
    assert not [p for p in proc.all_processes().values() if lease.mark.encode() in environ(p.pid)]


STARTS_MANY = """
from datetime import timedelta
from dr_pipelines.processes.leases import Leases
leases = Leases(state)
print("ready", flush=True)
while True:
    leases.start(["sleep", "4711.{number}"], kind="sleeper", owner="me", log=state / "log", ttl=timedelta(hours=1))
"""


@pytest.mark.slow
def test_no_process_is_without_its_lease_at_whatever_moment_the_parent_is_killed(
    leases: Leases, state: Path, another_python: AnotherPython
) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for number in range(12):
        argument = f"4711.{number}{os.getpid()}"
        parent = another_python(STARTS_MANY.replace("4711.{number}", argument))
        assert parent.stdout
        parent.stdout.readline()
        wait_until(lambda: False, timeout=chance.random() * 0.05, interval=0.001)
        parent.kill()
        parent.wait()
        assert wait_until(lambda: not shells_for(argument), timeout=5)  # noqa: B023
        running = {process.pid for process in proc.all_processes().values() if argument in command(process.pid)}
        leased = {lease.pid for lease in leases.all() if leases.alive(lease)}
        assert running <= leased, f"seed {seed}"
        leases.end_owner("me")


def command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def shells_for(argument: str) -> list[int]:
    """Processes that are about to become the program."""
    commands = {pid: command(pid) for pid in proc.all_processes()}
    return [pid for pid, argv in commands.items() if argument in argv and "sh" in argv]


def test_a_process_that_a_killed_holder_had_begun_to_start_is_waited_for_and_ended(
    timed: Leases, state: Path, log: Path
) -> None:
    lease = sleeper(timed, log)
    note = state / "leases" / f"{lease.id}.process"
    noted = note.read_text()
    note.write_text("")
    alter(state, lease, holder_start_ticks=1)
    orphan = lease.model_copy(update={"holder_start_ticks": 1})
    with ThreadPoolExecutor(1) as pool:
        reaped = pool.submit(timed.reap, dead_holders=lambda lease: True)
        assert not wait_until(reaped.done, timeout=0.3)
        note.write_text(noted)
        assert reaped.result() == [orphan]
    assert not timed.alive(lease)


@pytest.mark.slow
def test_a_lease_whose_holder_was_killed_before_the_start_is_ended_with_its_folder(
    timed: Leases, state: Path, log: Path
) -> None:
    folder = scratch(state)
    lease = sleeper(timed, log, folders=(folder,))
    proc.send_signal(lease.pid, lease.start_ticks, signal.SIGKILL)
    (state / "leases" / f"{lease.id}.process").unlink()
    alter(state, lease, holder_start_ticks=1)
    assert [each.id for each in timed.reap(dead_holders=lambda lease: True)] == [lease.id]
    assert not folder.exists()
    assert timed.all(ending=True) == []


# --- never others


def alter(state: Path, lease: Lease, **fields: object) -> None:
    path = state / "leases" / f"{lease.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_process_that_got_the_id_of_a_leased_one_is_left_alone(
    timed: Leases, clock: FakeClock, state: Path, log: Path
) -> None:
    lease = sleeper(timed, log)
    timed.kill(lease.model_copy(update={"folders": (state,)}))  # keeps the lease
    with subprocess.Popen(["sleep", "1000"]) as other:
        stat = Path(f"/proc/{other.pid}/stat").read_text()
        process = proc.parse_stat(stat)
        note = stat.replace(f" {process.start_ticks} ", f" {process.start_ticks - 1} ")
        (state / "leases" / f"{lease.id}.process").write_text(note)
        (found,) = timed.all()
        assert found.pid == other.pid
        assert not timed.alive(found)
        clock.advance(3600)
        assert timed.reap() == [found]
        assert other.poll() is None
        other.kill()


def test_a_process_of_an_earlier_boot_is_nobody_of_now(timed: Leases, clock: FakeClock, state: Path, log: Path) -> None:
    lease = sleeper(timed, log)
    alter(state, lease, boot_id="another")
    (found,) = timed.all()
    assert not timed.alive(found)
    clock.advance(3600)
    timed.reap()
    assert timed.alive(lease)
    proc.send_signal(lease.pid, lease.start_ticks, signal.SIGKILL)


def test_a_copied_state_folder_ends_nothing(timed: Leases, clock: FakeClock, state: Path, log: Path) -> None:
    lease = sleeper(timed, log, folders=(scratch(state),))
    copy = Path(shutil.copytree(state, state.parent / "copy"))
    clock.advance(3600)
    assert Leases(copy, clock).reap() == []
    assert timed.alive(lease)
    assert (state / "scratch").is_dir()


def test_a_file_that_is_no_lease_is_passed_over(timed: Leases, clock: FakeClock, state: Path, log: Path) -> None:
    lease = sleeper(timed, log)
    (state / "leases" / "torn.json").write_text("{")
    alter(state, lease, lease_version=2)
    clock.advance(3600)
    assert timed.reap() == []
    assert timed.alive(lease)
    alter(state, lease, lease_version=1)


@pytest.mark.parametrize("place", ["outside", ".", "leases", "missing"])
def test_only_a_folder_below_the_state_folder_can_go_with_a_lease(
    leases: Leases, state: Path, log: Path, place: str
) -> None:
    folder = state / place if place != "outside" else state.parent / "outside"
    if place == "outside":
        folder.mkdir()
    with pytest.raises(UsageError, match="cannot go with a lease"):
        sleeper(leases, log, folders=(folder,))


def test_a_link_out_of_the_state_folder_cannot_go_with_a_lease(leases: Leases, state: Path, log: Path) -> None:
    outside = state.parent / "outside"
    outside.mkdir()
    (state / "link").symlink_to(outside)
    with pytest.raises(UsageError, match="cannot go with a lease"):
        sleeper(leases, log, folders=(state / "link",))


def test_a_data_folder_itself_cannot_go_with_a_lease(leases: Leases, state: Path, log: Path) -> None:
    folder = scratch(state)
    (folder / "PG_VERSION").write_text("18\n")
    with pytest.raises(UsageError, match="data folder"):
        sleeper(leases, log, folders=(folder,))


def test_a_folder_without_our_mark_is_not_removed(timed: Leases, clock: FakeClock, state: Path, log: Path) -> None:
    folder = scratch(state)
    sleeper(timed, log, folders=(folder,))
    (folder / FOLDER_MARK).unlink()
    clock.advance(3600)
    timed.reap()
    assert (folder / "file").exists()


def test_a_folder_outside_is_not_removed_even_where_a_lease_says_so(
    timed: Leases, clock: FakeClock, state: Path, log: Path
) -> None:
    outside = state.parent / "outside"
    outside.mkdir()
    (outside / FOLDER_MARK).write_text("")
    lease = sleeper(timed, log, folders=(scratch(state),))
    alter(state, lease, folders=[str(outside)])
    clock.advance(3600)
    timed.reap()
    assert outside.is_dir()


def test_a_folder_stays_while_another_lease_names_it_or_one_within(
    timed: Leases, clock: FakeClock, state: Path, log: Path
) -> None:
    folder = scratch(state)
    (folder / "within").mkdir()
    sleeper(timed, log, folders=(folder,), ttl=timedelta(minutes=1))
    later = sleeper(timed, log, folders=(folder / "within",), ttl=HOUR)
    clock.advance(60)
    timed.reap()
    assert (folder / "within").is_dir()
    clock.advance(3600)
    assert timed.reap() == [later]
    assert not (folder / "within").exists()


# --- letting go


def test_a_process_that_was_let_go_of_runs_on_and_keeps_its_folder(
    timed: Leases, clock: FakeClock, state: Path, log: Path
) -> None:
    folder = scratch(state)
    lease = sleeper(timed, log, folders=(folder,))
    timed.release(lease)
    clock.advance(3600)
    assert timed.reap() == []
    timed.end_owner("me")
    assert proc.is_alive(lease.pid, lease.start_ticks)
    assert sorted(path.name for path in folder.iterdir()) == ["file"]
    proc.send_signal(lease.pid, lease.start_ticks, signal.SIGKILL)


def test_a_folder_that_another_lease_names_stays_scratch_when_one_lets_go(
    timed: Leases, clock: FakeClock, state: Path, log: Path
) -> None:
    folder = scratch(state)
    gone = sleeper(timed, log, folders=(folder,))
    sleeper(timed, log, folders=(folder,))
    timed.release(gone)
    clock.advance(3600)
    timed.reap()
    assert not folder.exists()
    proc.send_signal(gone.pid, gone.start_ticks, signal.SIGKILL)
