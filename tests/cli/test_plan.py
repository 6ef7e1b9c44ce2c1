"""`dr plan`: accepted, refused with the place, shown."""

import json
from pathlib import Path

import pytest

from dr_pipelines.cli import execute
from dr_pipelines.plan import load_plan
from tests.cli.conftest import PLAN


def test_the_shipped_plan_is_accepted_with_its_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plan", "check", str(PLAN)]) == 0

    text = capsys.readouterr().out
    assert "accepted, 0 errors" in text
    assert "no headroom is left" in text


def test_a_refused_plan_says_file_line_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    text = PLAN.read_text().replace("rto: 1h", "rto: 1 hour", 1)
    plan.write_text(text)
    line = text[: text.index("1 hour")].count("\n") + 1

    assert execute(["plan", "check", str(plan)]) == 2
    assert f"error: {plan}:{line}: tiers.critical.rto: " in capsys.readouterr().out
    assert execute(["plan", "check", str(plan), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["accepted"] is False
    assert [entry["line"] for entry in document["findings"] if entry["level"] == "error"] == [line]
    assert execute(["plan", "show", str(plan)]) == 2


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plan", "check", str(tmp_path / "none.yaml"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "plan-error"


def test_the_plan_is_found_by_its_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DR_PLAN", str(PLAN))

    assert execute(["plan", "show", "--json"]) == 0

    services = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["services"]}
    assert (services["database"]["rto"], services["database"]["rto_source"]) == ("1h", "service")
    assert services["monitoring"]["rto_source"] == "tier"


def test_what_is_unprotected_is_shown_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    unprotected = [service for service in load_plan(PLAN).services if service.unprotected]
    assert unprotected

    assert execute(["plan", "show", str(PLAN)]) == 0

    shown = capsys.readouterr().out
    assert all(f"{service.name} is unprotected: {service.unprotected}" in shown for service in unprotected)
