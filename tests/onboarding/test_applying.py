"""Applying: files appear whole or not at all, keep their owner and mode, and a failure leaves what was there."""

import grp
import os
import pwd
from pathlib import Path

import pytest

from dr_pipelines.errors import ProcessError
from dr_pipelines.onboarding.applying import apply
from dr_pipelines.onboarding.items import Act, Item, MakeFolder, MakeRepository, State, WriteFile
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock

ME = pwd.getpwuid(os.geteuid()).pw_name


def carry_out(*acts: Act, state: State = State.TO_DO) -> list[str]:
    """The titles of the items that were told as done; none of them needs a server."""
    told: list[str] = []
    items = [Item(f"{number}", f"item {number}", "", state, acts=(act,)) for number, act in enumerate(acts)]
    apply(items, None, Settings(), SystemClock(), tell=lambda item: told.append(item.title))  # type: ignore[arg-type]
    return told


def test_what_is_done_already_or_by_hand_is_not_carried_out(tmp_path: Path) -> None:
    for state in (State.DONE, State.BY_HAND):
        assert carry_out(WriteFile(tmp_path / "file", "new", None), state=state) == []

    assert not (tmp_path / "file").exists()


def test_a_file_keeps_its_mode_unless_it_is_given_one_and_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")

    carry_out(WriteFile(tmp_path / "link", "new", "old"), WriteFile(tmp_path / "secret", "x", None, mode=0o600))

    assert (tmp_path / "link").is_symlink()
    assert ((tmp_path / "real").read_text(), (tmp_path / "real").stat().st_mode & 0o777) == ("new", 0o640)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real", "secret"]


def test_the_first_failure_ends_it_and_what_was_done_before_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    told: list[str] = []
    first, broken, never = (
        Item("a", "first", "", State.TO_DO, acts=(WriteFile(tmp_path / "first", "1", None),)),
        Item("b", "broken", "", State.TO_DO, acts=(WriteFile(tmp_path / "folder" / "file" / "deeper", "2", None),)),
        Item("c", "never", "", State.TO_DO, acts=(WriteFile(tmp_path / "never", "3", None),)),
    )

    with pytest.raises(ProcessError, match="broken"):
        apply(
            [first, broken, never],
            None,  # type: ignore[arg-type]
            Settings(),
            SystemClock(),
            tell=lambda item: told.append(item.title),
        )

    assert told == ["first"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "folder"]


def test_a_file_that_was_changed_since_it_was_looked_at_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "plan").write_text("edited")

    for seen in ("as it was", None):
        with pytest.raises(ProcessError, match="in the meantime"):
            carry_out(WriteFile(tmp_path / "plan", "new", seen))

    assert (tmp_path / "plan").read_text() == "edited"


def test_folders_and_repositories_are_made_once(tmp_path: Path) -> None:
    spool, place = tmp_path / "a" / "spool", tmp_path / "repository"
    group = grp.getgrgid(os.getegid()).gr_name

    for _ in range(2):
        carry_out(MakeFolder(spool, 0o2770, ME, group), MakeRepository(str(place), ME))

    assert spool.stat().st_mode & 0o7777 == 0o2770
    assert open_repository(str(place), settings=Settings()).format_version == 1
