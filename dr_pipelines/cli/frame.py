"""What every command of `dr` shares: exit codes, where its words go, and how it fails.

Standard output carries results and nothing else; notes, progress and errors go to standard error. With `--json`
standard output is exactly one JSON document, `{"error": {...}}` where the command fails.
"""

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, ClassVar, TextIO

import typer
from rich.console import Console
from rich.table import Table

from dr_pipelines.errors import DrError
from dr_pipelines.settings import load_settings
from dr_pipelines.timing import format_moment

__all__ = ["Exit", "Json", "Terminal", "end_on_signals", "run", "table"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


class Exit(IntEnum):
    """What a command's exit code says."""

    DONE = 0
    """Done, and every objective met."""
    FAILED = 1
    USAGE = 2
    """Called wrongly, or the machine is not set up for it."""
    SHORT = 3
    """Done, but an objective was missed or is unverified."""
    INTERRUPTED = 130


class Ended(BaseException):
    """SIGTERM or SIGHUP: the command ends what it started, as for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Terminal:
    """Where a command's words go. Text is printed as it is: brackets in it are no markup."""

    answered: ClassVar[bool] = False
    """Whether this process has printed its one document."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)

    def note(self, text: str) -> None:
        """Say something that is no result."""
        self.err.print(text)

    def result(self, document: Mapping[str, object], show: Callable[[Console], None]) -> None:
        """Print the command's result: the document as JSON, or what `show` prints of it for a person."""
        Terminal.answered = True
        if self.as_json:
            sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=_as_json) + "\n")
            sys.stdout.flush()
        else:
            show(self.out)


def _console(stream: TextIO) -> Console:
    # Into a file or a pipe, tables are as wide as they are: what wraps there cannot be searched.
    width = None if stream.isatty() else 200
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def table(*columns: str, rows: Sequence[Sequence[str]]) -> Table:
    """Rows for a person; nothing is cut off, long cells wrap."""
    made = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for column in made.columns:
        column.overflow = "fold"
    for row in rows:
        made.add_row(*row)
    return made


def _as_json(value: object) -> object:
    if isinstance(value, datetime):
        return format_moment(value)
    raise TypeError(f"{value!r} cannot be written as JSON")


def run(command: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> int:
    """Carry out the command line; returns its exit code, and never lets a traceback out unless `--debug` is given."""
    terminal = Terminal(as_json="--json" in arguments)
    Terminal.answered = False
    try:
        code = command(arguments)
        sys.stdout.flush()
        return code if isinstance(code, int) else Exit.DONE
    except typer.TyperException as error:
        _explain(error)
        return _failed(terminal, "usage-error", error.format_message(), "", error.exit_code, said=True)
    except DrError as error:
        return _failed(terminal, error.code, error.message, error.hint, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _failed(terminal, "interrupted", "interrupted; what was started is ended", "", Exit.INTERRUPTED)
    except Ended as end:
        name = signal.Signals(end.number).name
        return _failed(terminal, "interrupted", f"ended by {name}; what was started is ended", "", 128 + end.number)
    except typer.Exit as ended:
        return ended.exit_code
    except BrokenPipeError:
        # Whoever read the output has enough; what Python still wants to write at its end must not fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    # The last resort of a command line: what nobody foresaw is kept whole in a file, and told in one line.
    except Exception as error:
        if "--debug" in arguments:
            raise
        place = _keep_traceback()
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return _failed(terminal, "unexpected", f"unexpected: {said}", f"the traceback is in {place}", Exit.FAILED)


def _explain(error: typer.TyperException) -> None:
    """Let a usage error say itself, with the usage of the command that it is about."""
    show = getattr(error, "show", None)
    if show is not None:
        show(sys.stderr)
    else:
        sys.stderr.write(f"{error.format_message()}\n")


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does, with what it started; what is ignored (nohup) stays so."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise Ended(number)


def _failed(terminal: Terminal, code: str, message: str, hint: str, status: int, *, said: bool = False) -> int:
    if terminal.as_json and not Terminal.answered:
        error = {"code": code, "message": message, "hint": hint}
        terminal.result({"error": error}, lambda console: None)
    elif not said:
        terminal.note(f"dr: {message}" + (f"\n    {hint}" if hint else ""))
    return status


def _keep_traceback() -> Path:
    text = traceback.format_exc()
    name = f"dr-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}.log"
    # Where the settings are what is wrong, the next best place will do.
    with suppress(Exception):
        folder = load_settings().state_dir / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_text(text)
        return path
    path = Path(tempfile.gettempdir()) / name
    path.write_text(text)
    return path
