"""The command `dr`: everything that a person or cron can ask of this project."""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from dr_pipelines import __version__
from dr_pipelines.cli import agent, approve, backup, doctor, drill, exposure, init, plan, report, restore, ui
from dr_pipelines.cli.frame import end_on_signals, run

__all__ = ["app", "execute", "main"]

EPILOG = (
    "Exit codes: 0 done and every objective met; 1 failed; 2 wrong usage or configuration; "
    "3 done, but an objective was missed or is unverified; 130 interrupted."
)

app = typer.Typer(
    name="dr",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=EPILOG,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Let the traceback of an unexpected error through.")] = False,
) -> None:
    """Recovery that is run and measured, held against the recovery plan."""


def _add(command: Callable[..., int], summary: str, example: str) -> None:
    app.command(command.__name__, short_help=summary, epilog=f"Example: dr {example}")(command)


_add(init.init, "Protect a database of your own.", "init orders --repository s3://my-backups/prod")
app.add_typer(plan.app, name="plan")
app.add_typer(backup.app, name="backup")
_add(restore.restore, "Bring a database back.", "restore database --target /var/lib/restored/data --start")
_add(approve.approvals, "What waits for an approval.", "approvals")
_add(
    approve.approve,
    "Approve it, or deny it.",
    "approve 20260301T120000Z-restore-9f86d0 --target /var/lib/restored/data",
)
app.add_typer(drill.app, name="drill")
_add(exposure.exposure, "What would be lost at this moment.", "exposure")
app.add_typer(report.app, name="report")
_add(doctor.doctor, "What is there, what is not, and the mend.", "doctor")
_add(ui.ui, "Dagster's UI on this machine.", "ui --port 3000")
_add(agent.agent, "Keep a database's log flowing.", "agent --service database")


def main() -> None:
    """The entry point `dr`."""
    end_on_signals()
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: Sequence[str]) -> int:
    """Carry out one command line in this process; returns its exit code."""

    def carry_out(arguments: Sequence[str]) -> object:
        command = typer.main.get_command(app)
        with command.make_context("dr", list(arguments)) as context:
            return command.invoke(context)

    return run(carry_out, arguments)
