import os
import pwd
import sys
from pathlib import Path

import pytest

from dr_pipelines.errors import ConfigurationError, MissingSoftware, ProcessError
from dr_pipelines.processes import proc
from dr_pipelines.processes.identity import (
    Identity,
    check_reachable,
    environment,
    give_to,
    open_folder,
    run,
    server_identity,
)
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root becomes somebody else")


@pytest.fixture
def nobody() -> Identity:
    entry = pwd.getpwnam("nobody")
    return Identity("nobody", entry.pw_uid, entry.pw_gid)


@as_user
def test_an_ordinary_user_runs_servers_as_itself() -> None:
    assert server_identity(Settings()) is None


@as_root
def test_root_runs_servers_as_a_user_without_rights() -> None:
    identity = server_identity(Settings())
    assert identity is not None
    assert identity.name in ("postgres", "nobody")
    assert identity.uid != 0


@as_root
def test_root_runs_servers_as_the_user_that_was_named() -> None:
    identity = server_identity(Settings(server_user="nobody"))
    assert identity is not None
    assert identity.name == "nobody"


@as_root
@pytest.mark.parametrize("name", ["root", "no-such-user"])
def test_a_user_that_cannot_run_servers_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        server_identity(Settings(server_user=name))


@as_root
def test_a_tool_runs_as_the_identity_with_its_groups_alone(nobody: Identity) -> None:
    said = run(["id", "-u"], identity=nobody, timeout=10).stdout + run(["id", "-G"], identity=nobody, timeout=10).stdout
    assert said.split() == [str(nobody.uid), str(nobody.gid)]


@as_root
def test_what_was_given_belongs_to_the_identity_but_not_what_a_link_points_at(
    nobody: Identity, world_readable_folder: Path
) -> None:
    outside = world_readable_folder / "outside"
    outside.write_text("")
    folder = world_readable_folder / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").write_text("")
    (folder / "link").symlink_to(outside)
    give_to(folder, nobody, recursive=True)
    assert (folder / "below" / "file").stat().st_uid == nobody.uid
    assert outside.stat().st_uid == 0


@as_root
def test_a_folder_behind_a_closed_one_is_called_out_of_reach(nobody: Identity, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match="cannot enter"):
        check_reachable(closed / "data", nobody)


def test_folders_that_are_made_can_be_entered_whatever_the_umask(world_readable_folder: Path) -> None:
    before = os.umask(0o077)
    try:
        folder = open_folder(world_readable_folder / "a" / "b")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o755, 0o755]


def test_variables_of_postgres_do_not_reach_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "production")
    said = run(["env"], env={"PGPORT": "1"}, timeout=10).stdout
    assert "PGHOST" not in said
    assert "PGPORT=1" in said


def test_whoever_has_fewer_rights_does_not_get_our_secrets(monkeypatch: pytest.MonkeyPatch, nobody: Identity) -> None:
    monkeypatch.setenv("DR_S3_SECRET_ACCESS_KEY", "secret")
    assert "DR_S3_SECRET_ACCESS_KEY" in environment(None)
    assert "DR_S3_SECRET_ACCESS_KEY" not in environment(nobody)


def test_a_tool_runs_in_the_root_folder_unless_another_is_given(world_readable_folder: Path) -> None:
    assert run(["pwd"], timeout=10).stdout.strip() == "/"
    assert run(["pwd"], cwd=world_readable_folder, timeout=10).stdout.strip() == str(world_readable_folder)


def test_a_tool_reads_its_input() -> None:
    assert run(["cat"], input="été", timeout=10).stdout == "été"


def test_a_tool_that_fails_says_how_it_ended() -> None:
    with pytest.raises(ProcessError, match=r"sh failed with exit code 3: the first \| the last"):
        run(["sh", "-c", "echo the first; echo the last >&2; exit 3"], timeout=10)


def test_a_failure_that_was_expected_is_no_error() -> None:
    assert run(["false"], timeout=10, check=False).returncode == 1


def test_output_goes_to_the_log_and_its_end_into_the_error(world_readable_folder: Path) -> None:
    log = world_readable_folder / "log"
    run(["echo", "one"], timeout=10, log=log)
    with pytest.raises(ProcessError, match="two"):
        run(["sh", "-c", "echo two; exit 1"], timeout=10, log=log)
    assert log.read_text() == "one\ntwo\n"


def test_a_tool_that_takes_too_long_is_killed_with_its_children(world_readable_folder: Path) -> None:
    noted = world_readable_folder / "pid"
    with pytest.raises(ProcessError, match=r"not done after 0.5 s.*begun"):
        run(["sh", "-c", f"echo begun; sleep 1000 & echo $! > {noted}; wait"], timeout=0.5)
    child = int(noted.read_text())

    def gone() -> bool:
        process = proc.look_up(child)
        return process is None or process.dead

    assert wait_until(gone, timeout=5)


def test_a_tool_that_is_not_there_is_missing_software() -> None:
    with pytest.raises(MissingSoftware, match="no-such-tool"):
        run(["no-such-tool"], timeout=10)


@as_root
def test_a_tool_out_of_the_identitys_reach_is_said_to_be(nobody: Identity, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "tool").symlink_to(sys.executable)
    with pytest.raises(ProcessError, match="nobody may not run tool"):
        run([str(tmp_path / "tool")], identity=nobody, timeout=10)
