"""`dr report`: what was promised beside what was measured."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from dr_pipelines.cli.frame import Exit, Json, Terminal
from dr_pipelines.cli.opening import opened
from dr_pipelines.cli.schedules import switched_off
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.errors import ConfigurationError, UsageError
from dr_pipelines.reports.adherence import adherence as compare
from dr_pipelines.reports.page import adherence_page
from dr_pipelines.reports.reading import read_records
from dr_pipelines.reports.table import render_adherence

__all__ = ["app"]

app = typer.Typer(help="Promises beside measurements.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Promises beside measurements."""


@app.command(
    short_help="Every service, its promises kept or not.", epilog="Example: dr report adherence --html adherence.html"
)
def adherence(
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write it as one self-contained page.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Show each service's promised RTO and RPO beside the latest measured ones, with the run and record they are from.

    Exit code 0 where every protected service met its objectives, 3 where one missed them or was never measured.
    """
    terminal = Terminal(as_json=as_json)
    with opened(terminal) as around:
        if around.plan is None:
            raise ConfigurationError(
                "there is no recovery plan, so nothing was promised", hint="DR_PLAN names its file"
            )
        off = list(switched_off(around.settings))
        records = read_records(around.repository, off.append)
        found = compare(around.plan, records, now=around.clock.wall(), off=off)
    if html is not None:
        _write(html, adherence_page(found))
        terminal.note(f"the page is {html.absolute()}")
    terminal.result(found.to_document(), lambda console: render_adherence(found, console))
    return Exit.DONE if found.verdict is Verdict.MET else Exit.SHORT


def _write(file: Path, page: str) -> None:
    """Whole or not at all: a report that was there stays where the new one cannot be written."""
    place = file.resolve()
    draft = place.with_name(f".{place.name}.{os.getpid()}.draft")
    try:
        draft.write_text(page, encoding="utf-8")
        draft.replace(place)
    except OSError as error:
        raise UsageError(
            f"{file} cannot be written: {error.strerror}", hint="--html takes a file in a folder that is there"
        ) from None
    finally:
        with suppress(OSError):
            draft.unlink()
