"""What is shown while a command works: bars where there is a terminal, a few lines where there is none."""

import io

from rich.console import Console

from dr_pipelines.cli.display import Display


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, markup=False, highlight=False)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def test_without_a_terminal_an_amount_is_a_line_now_and_then() -> None:
    shown = console(terminal=False)

    with Display(shown) as display:
        for done in range(101):
            display.progress("loading", done, 100)
        display.progress("backing up", 30, 20)

    assert text(shown).splitlines() == [
        *("loading: 25 %", "loading: 50 %", "loading: 75 %", "loading: 100 %"),
        "backing up: 100 %",
    ]


def test_notes_are_printed_as_they_are() -> None:
    shown = console(terminal=False)

    with Display(shown) as display:
        display.info("a [bold]note[/bold] :smile:")
        display.warning("[red]careful")

    assert text(shown) == "a [bold]note[/bold] :smile:\nwarning: [red]careful\n"


def test_on_a_terminal_a_bar_grows_and_goes_with_the_next_note() -> None:
    shown = console(terminal=True)

    with Display(shown) as display:
        display.progress("applying WAL", 1, 2)
        display._bars.refresh()
        assert "50%" in text(shown)
        display.info("the next step")
        before = len(text(shown))
        display._bars.refresh()

        assert "50%" not in text(shown)[before:]


def test_an_amount_of_nothing_is_done() -> None:
    shown = console(terminal=False)

    with Display(shown) as display:
        display.progress("reading", 0, 0)

    assert text(shown) == "reading: 100 %\n"
