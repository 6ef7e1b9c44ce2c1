"""How a restored server is to take the lost one's place, as it was filled in."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from dr_pipelines.errors import ConfigurationError, UsageError
from dr_pipelines.runbooks.handover import WISHES, Wish, read_wish
from dr_pipelines.settings import Settings

FORM: dict[str, Any] = {
    "cutover": True,
    "listen": "10.0.0.7",
    "port": 5432,
    "address": "",
    "approval_within": "30m",
    "despite_findings": False,
}


def settings(folder: Path, **changes: Any) -> Settings:
    own: dict[str, Any] = {
        "dsn": {"database": SecretStr("host=10.0.0.5 user=postgres")},
        "connection_file": {"database": folder / "clients.conf"},
    }
    return Settings(state_dir=folder / "state", **(own | changes))


def test_the_form_has_what_is_asked_for() -> None:
    assert set(FORM) == set(WISHES)


def test_what_was_filled_in_is_what_is_wished_for(tmp_path: Path) -> None:
    wish = read_wish(settings(tmp_path), "database", **FORM | {"listen": "*", "address": "db.example.org"})

    assert wish is not None
    assert (wish.listen, wish.address, wish.patience.total_seconds()) == ("*", ("db.example.org", "5432"), 1800)


def test_without_a_cutover_there_is_nothing_to_wish_for(tmp_path: Path) -> None:
    nothing = FORM | {"cutover": False, "listen": "", "port": 0}

    assert read_wish(settings(tmp_path), "database", **nothing) is None
    with pytest.raises(UsageError, match="port: it is for a cutover"):
        read_wish(settings(tmp_path), "database", **nothing | {"port": 5432})


def test_at_the_old_ones_address_nobody_has_to_be_led(tmp_path: Path) -> None:
    wish = read_wish(settings(tmp_path, connection_file={}), "database", **FORM | {"listen": "10.0.0.5"})

    assert isinstance(wish, Wish)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"listen": ""}, "needs the new server's address"),
        ({"port": 0}, "needs the new server's address"),
        ({"port": 70000}, "70000"),
        ({"port": -1}, "-1"),
        ({"listen": "*"}, "no address of one server"),
        ({"listen": "10.0.0.7,10.0.0.8"}, "no address of one server"),
        ({"listen": "/run/postgresql"}, "no address of one server"),
        ({"approval_within": "soon"}, "approval_within"),
        ({"approval_within": "2w"}, "at most 1d"),
        ({"approval_within": "0s"}, "at most 1d"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("*", r"\*")):
        read_wish(settings(tmp_path), "database", **FORM | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dsn": {}}, "DR_DSN__DATABASE is not set"),
        ({"dsn": {"database": SecretStr("user=ada")}}, "names no host"),
        ({"dsn": {"database": SecretStr("host=a,b")}}, "names several servers"),
        ({"connection_file": {}}, "nothing says how the clients of database are led"),
    ],
)
def test_what_is_not_set_up_here_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read_wish(settings(tmp_path, **change), "database", **FORM)
