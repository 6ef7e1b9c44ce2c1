"""`dr drill`: lose a database and bring it back, in a Dagster run, and show what was measured."""

import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dr_pipelines.cli.dagster import execute_job, plan_of_runs, require_dagster
from dr_pipelines.cli.display import Display
from dr_pipelines.cli.frame import Exit, Json, Terminal, table
from dr_pipelines.cli.opening import settled
from dr_pipelines.cli.services import who_asks
from dr_pipelines.drills.options import read_options
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.errors import DrError, ProcessError, UsageError
from dr_pipelines.processes.identity import end_of, open_folder
from dr_pipelines.reports.reading import read_record
from dr_pipelines.reports.table import render_record
from dr_pipelines.repository.identifiers import timed_id
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.runbooks.progress import Entry, EntryKind
from dr_pipelines.runbooks.record import Record
from dr_pipelines.settings import Settings, load_settings
from dr_pipelines.timing import SystemClock, format_duration, parse_duration

__all__ = ["app", "parse_size"]

app = typer.Typer(help="Lose something on purpose, measured.", no_args_is_help=True)

SLACK = timedelta(seconds=4)
"""What is lost may be this much older than archive_timeout: a segment is still to be written, spooled and shipped."""
STREAM_LIMIT = timedelta(seconds=5)
"""What is lost may be this old where the log is streamed: chunks are a second apart, and take their way."""
_UNITS = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}


@dataclass(frozen=True)
class _Form:
    """What the drill's job is launched with, apart from its seed."""

    size_bytes: int
    archive_timeout: str
    log: str
    writers: int
    major: int | None
    keep: bool
    cutover: bool
    approve_by_hand: bool


@dataclass(frozen=True)
class _Drilled:
    """How one drill came out; no record where it failed before there was anything to measure."""

    seed: int
    record: Record | None
    error: DrError | None

    @property
    def code(self) -> int:
        if self.record is None:
            return self.error.exit_code if self.error is not None else Exit.FAILED
        if self.error is not None:
            # Whatever refused a step: the database was lost by then, and was not brought back.
            return Exit.FAILED
        return Exit.DONE if self.record.verdict is Verdict.MET else Exit.SHORT

    def code_within(self, limit: timedelta) -> int:
        """As `code`, and short of it where what was lost is older than `limit`."""
        return Exit.SHORT if self.code == Exit.DONE and self.is_over(limit) else self.code

    def is_over(self, limit: timedelta) -> bool:
        """Whether more was lost than the archive's switches explain."""
        seconds = self.record.rpo_seconds if self.record is not None else None
        return seconds is not None and timedelta(seconds=seconds) > limit


@app.callback()
def _group() -> None:
    """Lose something on purpose, measured."""


@app.command(short_help="The database's host.", epilog="Example: dr drill database --size 50MB --seed 7")
def database(
    size: Annotated[str, typer.Option("--size", help="How much data, such as 50MB or 2GB.")] = "50MB",
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Draws the moment of the loss; drawn itself where left out.")
    ] = None,
    archive_timeout: Annotated[
        str, typer.Option("--archive-timeout", help="How long a log segment stays open at most.")
    ] = "10s",
    log: Annotated[
        str, typer.Option("--log", help="How the log leaves the host: archive, stream or synchronous.")
    ] = "archive",
    writers: Annotated[int, typer.Option("--writers", min=1, max=32, help="How many writers keep it busy.")] = 3,
    times: Annotated[
        int, typer.Option("--times", min=1, help="How many drills, one after another, each with the next seed.")
    ] = 1,
    postgres: Annotated[
        int | None, typer.Option("--postgres", help="Its major version; the newest that is installed where left out.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the drill's servers, folders and backups.")] = False,
    cutover: Annotated[
        bool,
        typer.Option("--cutover/--no-cutover", help="Let the restored server take the lost one's place, or not."),
    ] = True,
    approve_by_hand: Annotated[
        bool, typer.Option("--approve-by-hand", help="Wait for dr approve; the drill itself approves otherwise.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Make a PostgreSQL under write load, back it up, destroy it, bring it back, and measure RTO, RPO and integrity.

    Needs the checkout and Dagster. With --json it prints the record; with --times too, {"drills": [...]}.

    Exit code 0 where RTO, RPO and integrity are met, 3 where one is missed or unverified, 1 where the restore failed.
    """
    terminal = Terminal(as_json=as_json)
    form = _Form(parse_size(size), archive_timeout, log, writers, postgres, keep, cutover, approve_by_hand)
    require_dagster()
    first = seed if seed is not None else secrets.randbelow(1_000_000)
    _check(form, first)
    drilled = []
    with settled(terminal) as settings:
        for number in range(first, first + times):
            drilled.append(_drill(terminal, settings, form, number))
            if drilled[-1].code == Exit.USAGE:
                break  # the next one would be refused as well
            if times > 1:
                _tell(terminal, drilled[-1], len(drilled), times)
    if times > 1:
        return _report_all(terminal, drilled, _limit(form))
    return _report_one(terminal, drilled[0])


def _limit(form: _Form) -> timedelta:
    """How old what is lost may be, by how the log leaves the host."""
    if form.log == "archive":
        return parse_duration(form.archive_timeout) + SLACK
    return STREAM_LIMIT if form.log == "stream" else timedelta(0)


def parse_size(text: str) -> int:
    """Read a size such as "50MB" or "1.5GiB", in bytes. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2] not in _UNITS:
        units = ", ".join(unit for unit in _UNITS if unit)
        raise UsageError(f'"{text}" is not a size', hint=f"a number with a unit ({units}), such as 50MB")
    return int(Decimal(match[1]) * _UNITS[match[2]])


def _check(form: _Form, seed: int) -> None:
    """Raise what the run would refuse, before Dagster is started for it: the plan, and what was filled in."""
    plan = plan_of_runs(load_settings())
    read_options(service="database", rate=1, reason="", requested_by="", seed=seed, plan=plan, **asdict(form))


@dataclass
class _Watcher:
    """Shows what the run tells, and keeps what matters at the end."""

    display: Display
    record_id: str | None = None
    error: Entry | None = None

    def __call__(self, entry: Entry) -> None:
        match entry.kind:
            case EntryKind.NOTE:
                self.display.info(entry.text)
            case EntryKind.WARNING:
                self.display.warning(entry.text)
            case EntryKind.PROGRESS:
                self.display.progress(entry.text, entry.done or 0, entry.total or 0)
            case EntryKind.RECORD:
                self.record_id = entry.text
            case EntryKind.ERROR:
                # What is told first is the cause.
                self.error = self.error or entry
            case EntryKind.STEP:
                pass  # the step's own notes tell more


def _drill(terminal: Terminal, settings: Settings, form: _Form, seed: int) -> _Drilled:
    execution_id = timed_id("drill", SystemClock().wall())
    log = open_folder(open_folder(settings.state_dir) / "logs") / f"{execution_id}.log"
    config = {
        "size_bytes": form.size_bytes,
        "archive_timeout": form.archive_timeout,
        "log": form.log,
        "writers": form.writers,
        "keep": form.keep,
        "cutover": form.cutover,
        "approve_by_hand": form.approve_by_hand,
        "seed": seed,
        "execution_id": execution_id,
        **({"major": form.major} if form.major is not None else {}),
    }
    terminal.note(f"drill {execution_id}, seed {seed}: Dagster's own words go to {log}")
    with Display(terminal.err) as display:
        watcher = _Watcher(display)
        code = execute_job(
            "database_drill",
            settings,
            config={"ops": {"set_the_stage": {"config": config}}},
            tags={"dr/requested-by": who_asks()},
            log=log,
            watch=watcher,
        )
    record = _record(settings, watcher.record_id) if watcher.record_id is not None else None
    return _Drilled(seed, record, _error(watcher.error, code, log) if code or record is None else None)


def _record(settings: Settings, record_id: str) -> Record:
    assert settings.repository is not None
    return read_record(open_repository(settings.repository, settings=settings).records.get(record_id))


def _error(told: Entry | None, code: int, log: Path) -> DrError:
    if told is None:
        return ProcessError(f"Dagster ended with {code}: {end_of(log, lines=6)}", hint=f"all of it is in {log}")
    kind = next((each for each in _kinds(DrError) if each("").code == told.code), ProcessError)
    error = kind(told.text, hint=told.hint or f"what led to it is in {log}")
    if told.exit_code is not None:
        error.exit_code = told.exit_code
    return error


def _kinds(kind: type[DrError]) -> Iterator[type[DrError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)


def _tell(terminal: Terminal, drilled: _Drilled, done: int, times: int) -> None:
    outcome = drilled.record.verdict.value if drilled.record is not None else "failed"
    terminal.note(
        f"{done} of {times}, seed {drilled.seed}: {outcome}" + (f": {drilled.error}" if drilled.error else "")
    )


def _report_one(terminal: Terminal, drilled: _Drilled) -> int:
    record = drilled.record
    if record is None:
        assert drilled.error is not None
        raise drilled.error
    terminal.result(record.document(), lambda console: _show(console, record))
    if drilled.error is not None:
        terminal.note(f"dr: {drilled.error}")
    return drilled.code


def _show(console: Console, record: Record) -> None:
    render_record(record, console)
    dr = "dr" if shutil.which("dr") else ".venv/bin/dr"
    report = f"{dr} report adherence --html report.html"
    console.print(f"\nnext: {report}   the promises beside what was measured, as a page")
    console.print(f"      {'make ui':{len(report)}}   the run in Dagster, step by step")


def _report_all(terminal: Terminal, drilled: list[_Drilled], limit: timedelta) -> int:
    document = {
        "drills": [
            {
                "seed": entry.seed,
                "record": entry.record.document() if entry.record is not None else None,
                "error": str(entry.error) if entry.error is not None else None,
                "oldest_loss_seconds": entry.record.rpo_seconds if entry.record is not None else None,
                "oldest_loss_limit_seconds": limit.total_seconds(),
            }
            for entry in drilled
        ]
    }
    terminal.result(document, lambda console: _show_all(console, drilled, limit))
    codes = [entry.code_within(limit) for entry in drilled]
    return next((code for code in (Exit.USAGE, Exit.FAILED, Exit.SHORT) if code in codes), Exit.DONE)


def _show_all(console: Console, drilled: list[_Drilled], limit: timedelta) -> None:
    rows = []
    for entry in drilled:
        record = entry.record
        if record is None:
            rows.append((str(entry.seed), "–", "–", "–", "–", "failed", str(entry.error)))
            continue
        verdicts = record.verdicts
        rows.append(
            (
                str(entry.seed),
                f"{_seconds(record.rto_seconds)} {verdicts.rto}",
                f"{_seconds(record.rpo_seconds)} {verdicts.rpo}",
                _oldest_loss(entry, limit),
                str(verdicts.integrity),
                str(record.verdict) if entry.error is None else "failed",
                record.record_id,
            )
        )
    columns = ("seed", "RTO", "RPO", f"oldest loss (limit {format_duration(limit)})", "integrity", "verdict", "record")
    console.print(table(*columns, rows=rows), soft_wrap=False)
    met = sum(entry.code_within(limit) == Exit.DONE for entry in drilled)
    over = sum(entry.is_over(limit) for entry in drilled)
    said = f"; {over} lost more than the limit of {format_duration(limit)}, which counts as missed" if over else ""
    console.print(f"{met} of {len(drilled)} met every objective{said}")


def _oldest_loss(drilled: _Drilled, limit: timedelta) -> str:
    if drilled.record is None or drilled.record.rpo_seconds is None:
        return "not measured"
    return f"{_seconds(drilled.record.rpo_seconds)}{' OVER THE LIMIT' if drilled.is_over(limit) else ''}"


def _seconds(seconds: float | None) -> str:
    return format_duration(timedelta(seconds=seconds)) if seconds is not None else "–"
