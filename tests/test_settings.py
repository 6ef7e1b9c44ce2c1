"""Settings from the environment."""

import os
from pathlib import Path

import pytest

from dr_pipelines.errors import ConfigurationError
from dr_pipelines.settings import load_settings, variable


@pytest.fixture(autouse=True)
def _environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("DR_") or name == "DAGSTER_HOME":
            monkeypatch.delenv(name)


def test_an_empty_environment_is_accepted() -> None:
    settings = load_settings()
    assert settings.plan == Path("recovery-plan.yaml")
    assert settings.repository is None
    assert settings.dsn_of("database") is None


def test_values_of_a_service_are_named_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DR_DSN__DATABASE", "host=db")
    monkeypatch.setenv("DR_SPOOL__DATABASE", "/spool")
    settings = load_settings()
    assert settings.dsn_of("database") == "host=db"
    assert settings.dsn_of("redis") is None
    assert settings.spool_of("database") == Path("/spool")
    assert settings.spool_of("redis") == settings.state_dir / "spool/redis"


def test_a_service_with_a_hyphen_has_variables_that_a_shell_can_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DR_DSN__ORDERS_DB", "host=db")
    monkeypatch.setenv("DR_SPOOL__ORDERS_DB", "/spool")
    settings = load_settings()
    assert settings.dsn_of("orders-db") == "host=db"
    assert settings.spool_of("orders-db") == Path("/spool")
    assert variable("dsn", "orders-db") == "DR_DSN__ORDERS_DB"


def test_an_empty_variable_is_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DR_REPOSITORY", "")
    monkeypatch.setenv("DR_WORKERS", "")
    settings = load_settings()
    assert settings.repository is None
    assert settings.workers == 2


def test_every_variable_that_cannot_be_accepted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DR_WORKERS", "many")
    monkeypatch.setenv("DR_PART_SIZE", "1")
    monkeypatch.setenv("DR_LAB_REPOSITORY", "tape")
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    for name in ("DR_WORKERS", "DR_PART_SIZE", "DR_LAB_REPOSITORY"):
        assert name in str(refused.value)


def test_a_value_that_should_be_given_by_service_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DR_DSN", "password=hunter2")
    with pytest.raises(ConfigurationError, match="dsn") as refused:
        load_settings()
    assert "DR_DSN__DATABASE" in refused.value.hint
    assert "hunter2" not in str(refused.value)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DR_DSN__DATABASE", "password=hunter2")
    monkeypatch.setenv("DR_S3_SECRET_ACCESS_KEY", "hunter2")
    settings = load_settings()
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_dagster_home_is_in_the_state_folder_unless_dagster_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DR_STATE_DIR", "/state")
    assert load_settings().dagster_home == Path("/state/dagster")
    monkeypatch.setenv("DAGSTER_HOME", "/elsewhere")
    assert load_settings().dagster_home == Path("/elsewhere")


def test_roots_state_folder_is_not_below_its_home_and_a_users_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/home/somebody/state")
    root = os.geteuid() == 0
    expected = "/var/lib/dr_pipelines" if root else "/home/somebody/state/dr_pipelines"
    assert load_settings().state_dir == Path(expected)


def test_a_user_without_a_home_is_told_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    with pytest.raises(ConfigurationError, match="54321 has no home folder"):
        load_settings()


def test_an_endpoint_that_is_no_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DR_S3_ENDPOINT", "storage.internal")
    with pytest.raises(ConfigurationError, match="DR_S3_ENDPOINT"):
        load_settings()


def test_whether_a_plan_is_there_is_no_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DR_PLAN", "x" * 5000)
    with pytest.raises(ConfigurationError, match="cannot be looked at: File name too long"):
        _ = load_settings().has_plan
