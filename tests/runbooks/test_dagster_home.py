"""The home that Dagster is started with."""

from pathlib import Path

import pytest

from dr_pipelines.runbooks.dagster_home import checkout, prepare_home
from dr_pipelines.settings import Settings

SHIPPED = (checkout() / "deploy" / "dagster.yaml").read_bytes()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Settings(state_dir=tmp_path / "state")


def test_it_lies_below_the_state_folder_configured_and_for_nobody_else(settings: Settings) -> None:
    home = prepare_home(settings)
    assert home == settings.state_dir / "dagster"
    assert (home / "dagster.yaml").read_bytes() == SHIPPED
    assert home.stat().st_mode & 0o777 == 0o700
    assert settings.state_dir.stat().st_mode & 0o005 == 0o005


def test_its_configuration_is_always_that_of_the_checkout(settings: Settings) -> None:
    home = prepare_home(settings)
    (home / "dagster.yaml").write_text("run_queue: {max_concurrent_runs: 1}\n")
    assert prepare_home(settings) == home
    assert (home / "dagster.yaml").read_bytes() == SHIPPED


def test_a_home_of_somebodys_own_keeps_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    monkeypatch.setenv("DAGSTER_HOME", str(own))
    settings = Settings(state_dir=tmp_path / "state")
    assert prepare_home(settings) == own
    assert (own / "dagster.yaml").read_bytes() == SHIPPED
    (own / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    prepare_home(settings)
    assert (own / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"
