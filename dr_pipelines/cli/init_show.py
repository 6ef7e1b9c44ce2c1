"""What `dr init` tells: for a person, and as data."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.text import Text

from dr_pipelines.cli.first_backup import FirstBackup
from dr_pipelines.cli.frame import Exit
from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.onboarding.items import Item, Mode, Proposal, State

__all__ = ["Outcome", "document", "hindrances", "lost_password", "show"]

_STYLES = {State.DONE: "green", State.TO_DO: "cyan", State.BY_HAND: "yellow"}
_LEVELS = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red", Level.OFF: "cyan"}
_NOT_NEEDED = {"environment", "plan", "unit"}
"""What a first backup can do without."""


@dataclass(frozen=True)
class Outcome:
    """What was proposed, and what came of it."""

    proposal: Proposal
    done: tuple[Item, ...] = ()
    """The items that were carried out now."""
    hindered_by: tuple[str, ...] = ()
    """Why no first backup was made, though it was asked for."""
    first: FirstBackup | None = None

    def state(self, item: Item) -> State:
        """How an item stands by now."""
        return State.DONE if item in self.done else item.state

    @property
    def problems(self) -> list[Finding]:
        """What is in the way: of the proposal, or as the doctor has found it after the backup."""
        found = self.first.findings if self.first is not None else self.proposal.findings
        return [finding for finding in found if finding.level is Level.PROBLEM]

    @property
    def exit_code(self) -> Exit:
        """0 where nothing is left for a person but to start the agent."""
        if self.first is not None and self.problems:
            return Exit.FAILED
        left = [item for item in self.proposal.items if self.state(item) is State.BY_HAND]
        return Exit.SHORT if left or self.problems or self.hindered_by else Exit.DONE


def hindrances(proposal: Proposal) -> tuple[str, ...]:
    """What has to be done by hand before there can be a backup."""
    apart = _NOT_NEEDED | ({"settings"} if proposal.mode is Mode.STREAMING else set())
    return tuple(item.title for item in proposal.left(State.BY_HAND) if item.key not in apart)


def document(outcome: Outcome) -> dict[str, object]:
    """The whole of it as data; without secrets, but for a password that is written down nowhere else."""
    proposal, done = outcome.proposal, outcome.done
    return {
        "service": proposal.service,
        "mode": proposal.mode,
        "mode_reason": proposal.mode_reason,
        "findings": [asdict(finding) for finding in proposal.findings],
        "items": [
            {**item.described(), "state": outcome.state(item), "applied": item in done} for item in proposal.items
        ],
        "password": lost_password(proposal, done),
        "backup": outcome.first.backup if outcome.first is not None else None,
        "hindered_by": list(outcome.hindered_by),
        "doctor": [asdict(finding) for finding in outcome.first.findings] if outcome.first is not None else None,
        "next": list(_next(outcome)),
    }


def lost_password(proposal: Proposal, done: Iterable[Item]) -> str | None:
    """The role's password, where it was set now and stands in no file: it is told, since nobody can look it up."""
    keys = {item.key for item in done}
    password = proposal.new_password
    if "role" not in keys or "environment" in keys or password is None:
        return None
    return password.get_secret_value()


def show(console: Console, outcome: Outcome) -> None:
    """The same, for a person."""
    proposal = outcome.proposal
    _findings(console, proposal.findings)
    console.print(Text(f"\n{proposal.service}: {proposal.mode} mode, since {proposal.mode_reason}", style="bold"))
    for number, item in enumerate(proposal.items, 1):
        state = outcome.state(item)
        console.print(Text.assemble(f"\n{number:2}. {item.title}: ", Text(state.value, style=_STYLES[state])))
        console.print(f"    {item.why}")
        for line in item.text.splitlines():
            console.print(f"      {line}")
        if item in outcome.done and item.undo:
            console.print("    to take it back:")
            for line in item.undo.splitlines():
                console.print(f"      {line}")
    if password := lost_password(proposal, outcome.done):
        console.print(f"\nthe role's password, which is shown this once and stands in no file: {password}")
    if outcome.first is not None:
        console.print(f"\nthe first backup: {outcome.first.backup['backup_id']}")
        _findings(console, outcome.first.findings)
    for name in outcome.hindered_by:
        console.print(f"\nno backup was made: first, by hand: {name}")
    console.print("\nnext:")
    for line in _next(outcome):
        console.print(f"  {line}")


def _findings(console: Console, findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        mark = Text(f"  {finding.level.value:<8}", style=_LEVELS[finding.level])
        console.print(Text.assemble(mark, f"{finding.area}: {finding.looked_at}: {finding.seen}"))
        if finding.mend:
            console.print(f"          mend: {finding.mend}")


def _next(outcome: Outcome) -> Iterator[str]:
    """What is left to do, in order."""
    proposal = outcome.proposal
    service, left = proposal.service, [item for item in proposal.items if outcome.state(item) is not State.DONE]
    if any(item.state is State.TO_DO for item in left):
        yield f"dr init {service} ... --apply    does what is marked to do; nothing was changed yet"
        return
    for item in left:
        yield f"by hand: {item.title}"
    yield from proposal.next_steps
    if outcome.first is None:
        yield f"dr backup full {service}"
    yield f"dr doctor; dr restore {service} --to latest --target ...: a backup that was never restored is a hope"
