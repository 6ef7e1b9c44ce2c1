"""What `dr restore --cutover` adds: the restored server takes the lost one's place, once somebody has approved it."""

from collections.abc import Callable

from dr_pipelines.engines.postgres.recovery import RestoredServer
from dr_pipelines.errors import DrError, Locked, RepositoryError
from dr_pipelines.repository.overlay import Overlay
from dr_pipelines.runbooks.cutover import CutOver, cut_over
from dr_pipelines.runbooks.cutover_closing import close_cutover, close_failed_cutover, what_is_next
from dr_pipelines.runbooks.database_restore import Assessment, Surroundings, Validated
from dr_pipelines.runbooks.execution import Execution
from dr_pipelines.runbooks.handover import Wish, begin_cutover, begun_cutover, means_of
from dr_pipelines.runbooks.record import Record

__all__ = ["carry_out_cutover"]

CarryOut = Callable[[], tuple[Assessment, RestoredServer, Validated]]


def carry_out_cutover(
    around: Surroundings, execution: Execution, wish: Wish, restore: CarryOut, end_own: Callable[[], None]
) -> tuple[Record, CutOver, dict[str, str]]:
    """Restore, unless that is done, and cut over; a cutover that fails leaves a record of what had been found."""
    handover, means = begun_cutover(around, execution.id), means_of(around.settings, execution.service)
    if handover is None:
        if isinstance(around.repository.store, Overlay):
            raise RepositoryError(
                f"a cutover needs a repository that can be written to, and {around.repository.url} can only be read",
                hint="restore without --cutover",
            )
        assessment, server, validated = restore()
        handover = begin_cutover(around, assessment, server, validated, means)
    try:
        done = cut_over(around, handover, wish, means, None)
    except BaseException as error:
        end_own()
        if isinstance(error, Exception) and not isinstance(error, Locked):
            try:
                close_failed_cutover(around, handover, wish, means, str(error), None)
            except DrError as further:
                around.notes.warning(f"of this failure no record could be left: {further}")
        raise
    record = close_cutover(around, handover, done, None)
    return record, done, what_is_next(handover, done)
