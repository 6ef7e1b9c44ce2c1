"""Notes as lines and amounts as bars, on standard error, while a command works."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

__all__ = ["Display"]

_STRIDE = 25
"""Per cent between two lines where there is no terminal to draw a bar on."""


class Display:
    """Shows what is being done. Use as a context manager; it may be called from any thread.

    On a terminal an amount is a bar that stays as long as it grows; elsewhere (cron, a log) it is a line now and then.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        self._bars = Progress(
            *columns,
            console=console,
            disable=not console.is_terminal,
            transient=True,
            # Results go to standard output whatever is drawn here.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, int] = {}

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def info(self, message: str) -> None:
        """A line."""
        # What comes next has begun; a bar that still grows comes back by itself.
        for task in self._tasks.values():
            self._bars.update(task, visible=False)
        self._print(Text(message))

    def warning(self, message: str) -> None:
        """A line that asks for attention."""
        self._print(Text(f"warning: {message}", style="yellow"))

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of what is being done."""
        if not self._console.is_terminal:
            self._say_amount(what, done, total)
        elif what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, completed=done)
        else:
            task = self._tasks[what]
            # A bar that is full has told what it had to tell.
            self._bars.update(task, completed=done, total=total, visible=done < total)

    def _say_amount(self, what: str, done: int, total: int) -> None:
        percent = min(100, 100 * done // total) if total else 100
        reached = percent - percent % _STRIDE
        if reached > self._said.get(what, 0):
            self._said[what] = reached
            self._print(Text(f"{what}: {reached} %"))

    def _print(self, text: Text) -> None:
        self._console.print(text)
