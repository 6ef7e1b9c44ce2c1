"""How commands fail: exit codes, one message without a traceback, one JSON document."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from dr_pipelines.cli import app, execute
from dr_pipelines.cli.frame import Terminal, end_on_signals, run
from dr_pipelines.errors import MissingSoftware, ObjectMissing
from tests.cli.conftest import PLAN, Dr


def document(text: str) -> dict[str, dict[str, str]]:
    loaded: dict[str, dict[str, str]] = json.loads(text)
    return loaded


def test_an_error_is_one_message_with_its_hint_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def command(arguments: object) -> None:
        raise ObjectMissing("there is no [bold]such[/bold] thing", hint="look [elsewhere]")

    assert run(command, []) == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "dr: there is no [bold]such[/bold] thing\n    look [elsewhere]\n"


def test_with_json_the_error_is_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    def command(arguments: object) -> None:
        raise MissingSoftware("no PostgreSQL", hint="apt install postgresql")

    assert run(command, ["--json"]) == 2

    said = capsys.readouterr()
    error = {"code": "missing-software", "message": "no PostgreSQL", "hint": "apt install postgresql"}
    assert document(said.out) == {"error": error}


def test_what_nobody_foresaw_is_kept_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DR_STATE_DIR", str(tmp_path))

    assert run(lambda arguments: 1 // 0, []) == 1

    said = capsys.readouterr().err
    (log,) = (tmp_path / "logs").iterdir()
    assert str(log) in said and "ZeroDivisionError" in said and "Traceback" not in said
    assert "Traceback" in log.read_text()


def test_debug_lets_it_through() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda arguments: 1 // 0, ["--debug"])


def test_an_error_after_the_result_is_no_second_document(capsys: pytest.CaptureFixture[str]) -> None:
    def command(arguments: object) -> None:
        Terminal(as_json=True).result({"done": True}, lambda console: None)
        raise KeyboardInterrupt

    assert run(command, ["--json"]) == 130

    said = capsys.readouterr()
    assert json.loads(said.out) == {"done": True}
    assert "interrupted" in said.err


@pytest.mark.parametrize(
    "arguments", [["plan", "chekc"], ["plan", "check", "--bogus"], ["backup", "full"], ["nothing"]]
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(arguments) == 2
    assert capsys.readouterr().out == ""

    assert execute([*arguments, "--json"]) == 2
    assert document(capsys.readouterr().out)["error"]["code"] == "usage-error"


def test_a_variable_that_cannot_be_accepted_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DR_WORKERS", "many")

    assert execute(["plan", "check"]) == 2
    assert "DR_WORKERS" in capsys.readouterr().err


def test_results_go_to_standard_output_and_notes_do_not(dr: Dr) -> None:
    said = dr("exposure", "--json", DR_PLAN=PLAN, DR_LAB_REPOSITORY="folder")

    assert "the lab's own repository" in said.err
    assert said.document["exposures"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_as_ctrl_c_does(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    cleared = []

    def command(arguments: object) -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleared.append(True)

    end_on_signals()
    try:
        assert run(command, []) == 128 + number
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert cleared
    assert f"ended by {number.name}" in capsys.readouterr().err


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    terminating = signal.getsignal(signal.SIGTERM)
    try:
        end_on_signals()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, terminating)


def test_a_reader_that_has_enough_is_no_error(dr: Dr) -> None:
    command = " ".join(dr.command("plan", "show", PLAN))

    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip

    assert done.stderr == ""
    assert done.stdout.startswith("service")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--version"]) == 0
    assert capsys.readouterr().out.strip()
    assert app.info.name == "dr"


def test_a_page_that_cannot_be_written_is_wrong_usage(dr: Dr) -> None:
    refused = dr("report", "adherence", "--html", "/nosuch/x.html", DR_PLAN=PLAN, DR_LAB_REPOSITORY="folder")

    assert (refused.code, "unexpected" in refused.err) == (2, False)
    assert "/nosuch/x.html cannot be written" in refused.err


def test_a_page_that_was_there_stays_where_the_new_one_cannot_be_written(dr: Dr, bare_package: Path) -> None:
    page = dr.folder / "report.html"
    page.write_text("the last one")
    small_files = ["bash", "-c", 'ulimit -f 8; exec "$0" "$@"']

    alone = Dr({**dr.environment, "DR_LAB_REPOSITORY": "folder", "PYTHONPATH": str(bare_package)}, dr.folder)
    refused = alone("report", "adherence", "--html", page, prefix=small_files, DR_PLAN=PLAN)

    assert refused.code == 2, refused.err
    assert "cannot be written" in refused.err
    assert page.read_text() == "the last one"
    assert list(dr.folder.glob(".*draft")) == []


def test_a_state_folder_that_cannot_be_made_is_a_matter_of_configuration(dr: Dr) -> None:
    for command in (["drill", "database"], ["exposure"]):
        refused = dr(*command, DR_STATE_DIR="/proc/nowhere", DR_PLAN=PLAN, DR_LAB_REPOSITORY="folder")
        assert (refused.code, "unexpected" in refused.err) == (2, False), refused.err
        assert "DR_STATE_DIR" in refused.err


def test_a_plan_whose_place_cannot_be_looked_at_is_one_too(dr: Dr) -> None:
    refused = dr("exposure", DR_PLAN="x" * 5000, DR_LAB_REPOSITORY="folder")
    assert (refused.code, "unexpected" in refused.err) == (2, False), refused.err
    assert "DR_PLAN" in refused.err


def test_an_agent_of_no_service_of_the_plan_is_refused(dr: Dr) -> None:
    refused = dr("agent", "--service", "nosuch", DR_PLAN=PLAN, DR_REPOSITORY=dr.folder / "repository")

    assert refused.code == 2
    assert 'no service "nosuch"' in refused.err and "database" in refused.err
