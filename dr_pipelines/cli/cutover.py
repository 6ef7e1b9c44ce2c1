"""What `dr restore --cutover` adds: the restored server takes the lost one's place, once somebody has approved it."""

from collections.abc import Callable
from dataclasses import dataclass

from dr_pipelines.engines.postgres.recovery import RestoredServer
from dr_pipelines.errors import DrError, Locked, RepositoryError, UsageError
from dr_pipelines.repository.overlay import Overlay
from dr_pipelines.runbooks.cutover import CutOver, cut_over
from dr_pipelines.runbooks.cutover_closing import close_cutover, close_failed_cutover, what_is_next
from dr_pipelines.runbooks.database_restore import Assessment, Surroundings, Validated
from dr_pipelines.runbooks.execution import Execution
from dr_pipelines.runbooks.handover import Means, Wish, begin_cutover, begun_cutover, check_wish, means_of
from dr_pipelines.runbooks.record import Record
from dr_pipelines.settings import Settings
from dr_pipelines.timing import parse_duration

__all__ = ["Asked", "asked_for", "carry_out_cutover"]

CarryOut = Callable[[], tuple[Assessment, RestoredServer, Validated]]


@dataclass(frozen=True)
class Asked:
    """A cutover that was asked for and can be carried out here."""

    wish: Wish
    means: Means


def asked_for(
    settings: Settings,
    service: str,
    *,
    cutover: bool,
    listen: str | None,
    port: int | None,
    address: str | None,
    within: str,
    despite_findings: bool,
) -> Asked | None:
    """What the options say; None where no cutover is asked for. Raises UsageError, ConfigurationError."""
    if not cutover:
        for name, value in (("--listen", listen), ("--port", port), ("--address", address)):
            if value is not None:
                raise UsageError(f"{name} is for a cutover", hint="add --cutover, or leave it out")
        return None
    if listen is None or port is None:
        raise UsageError(
            "a cutover needs the new server's address",
            hint="--listen 10.0.0.7 --port 5432: what it listens on, and where its clients find it",
        )
    try:
        patience = parse_duration(within)
    except ValueError as error:
        raise UsageError(f"--approval-within: {error}") from None
    wish = Wish(listen, address if address is not None else listen, port, patience, despite_findings)
    means = means_of(settings, service)
    check_wish(service, wish, means)
    return Asked(wish, means)


def carry_out_cutover(
    around: Surroundings, execution: Execution, asked: Asked, restore: CarryOut, end_own: Callable[[], None]
) -> tuple[Record, CutOver, dict[str, str]]:
    """Restore, unless that is done, and cut over; a cutover that fails leaves a record of what had been found."""
    handover = begun_cutover(around, execution.id)
    if handover is None:
        if isinstance(around.repository.store, Overlay):
            raise RepositoryError(
                f"a cutover needs a repository that can be written to, and {around.repository.url} can only be read",
                hint="restore without --cutover",
            )
        assessment, server, validated = restore()
        handover = begin_cutover(around, assessment, server, validated, asked.means)
    try:
        done = cut_over(around, handover, asked.wish, asked.means, None)
    except BaseException as error:
        end_own()
        if isinstance(error, Exception) and not isinstance(error, Locked):
            try:
                close_failed_cutover(around, handover, asked.wish, asked.means, str(error), None)
            except DrError as further:
                around.notes.warning(f"of this failure no record could be left: {further}")
        raise
    record = close_cutover(around, handover, done, None)
    return record, done, what_is_next(handover, done)
