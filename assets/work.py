"""What every op does around its call into dr_pipelines: surroundings, progress, and what a failure leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import dagster as dg

from dr_pipelines.errors import ConfigurationError, DrError, ExecutionError, PlanError, UsageError
from dr_pipelines.plan import Plan, load_plan
from dr_pipelines.settings import Settings, load_settings

if TYPE_CHECKING:
    from dr_pipelines.runbooks.database_restore import Surroundings
    from dr_pipelines.runbooks.progress import Reporter
    from dr_pipelines.runbooks.record import Record

__all__ = ["RESTORE_TAGS", "Context", "Work", "machine_plan", "machine_settings", "working"]

Context = dg.OpExecutionContext | dg.AssetExecutionContext | dg.AssetCheckExecutionContext

RESTORE_TAGS = {
    # A restore that is half done goes on when somebody says so, never by itself.
    "dagster/max_retries": "0",
    # Whatever else waits in the queue waits longer.
    "dagster/priority": "10",
}

OnFailure = Callable[["Surroundings", str], "Record | None"]
"""What is done when an op fails: given what went wrong, it leaves a record or clears away."""


def machine_settings() -> Settings:
    """This machine's settings; a plan that is not in the working directory is the checkout's."""
    from dr_pipelines.runbooks.dagster_home import checkout

    settings = load_settings()
    if settings.plan.is_absolute() or settings.has_plan:
        return settings
    return settings.model_copy(update={"plan": checkout() / settings.plan})


def machine_plan() -> Plan:
    """The recovery plan. Raises PlanError with file and line where it cannot be accepted."""
    return load_plan(machine_settings().plan)


@dataclass
class Work:
    """What an op works with; `on_failure` may be set as soon as there is something to clear away or to record."""

    context: Context
    around: Surroundings
    reporter: Reporter
    on_failure: OnFailure | None

    @property
    def run_id(self) -> str:
        return self.context.run.run_id

    def report(self, record: Record) -> None:
        """A record was stored: tell whoever watches, and the catalogue. What fails after it leaves no other."""
        from assets.recovery import report_record

        self.on_failure = None
        self.reporter.record(record.record_id)
        if not isinstance(self.context, dg.OpExecutionContext):
            raise TypeError("only the ops of runbooks leave records")
        report_record(self.context, self.around, record)

    def close_failed(self, error: BaseException) -> None:
        """Do what is to be done after a failure; what goes wrong with that is told beside the failure itself."""
        if self.on_failure is None:
            return
        try:
            record = self.on_failure(self.around, str(error) if isinstance(error, DrError) else repr(error))
            if record is not None:
                self.report(record)
        except DrError as further:
            self.around.notes.warning(f"what failed could not be closed properly: {further}")


@contextmanager
def working(
    context: Context, step: str, on_failure: OnFailure | None = None, *, create: bool = False, retries: bool = False
) -> Iterator[Work]:
    """The body of an op. A DrError becomes Dagster's Failure with code and hint, with `retries` one to be retried.

    With `create` an empty place becomes a repository.
    """
    from dr_pipelines.runbooks.database_restore import surroundings
    from dr_pipelines.runbooks.progress import Reporter
    from dr_pipelines.timing import SystemClock

    clock = SystemClock()
    reporter = Reporter.from_environment(context.log, clock)
    try:
        with reporter.step(step):
            _require_unfinished(context)
            around = surroundings(machine_settings(), reporter, clock=clock, progress=reporter.progress, create=create)
            work = Work(context, around, reporter, on_failure)
            try:
                yield work
            # Also where the run is canceled, which Dagster does with an exception of its own.
            except BaseException as error:
                work.close_failed(error)
                raise
    except DrError as error:
        _raise_failure(error, retries)


def _require_unfinished(context: Context) -> None:
    """A run that was given up before its process came up may come up all the same, and must not begin then."""
    run = context.instance.get_run_by_id(context.run.run_id)
    if run is None or run.is_finished:
        raise ExecutionError(
            f"this run is {run.status.value.lower() if run else 'gone'} already: its process came up too late",
            hint="launch a new run, or re-execute this one from failure",
        )


def _raise_failure(error: DrError, retries: bool) -> NoReturn:
    in_vain = isinstance(error, UsageError | ConfigurationError | PlanError)
    raise dg.Failure(
        description=error.message + (f"\n{error.hint}" if error.hint else ""),
        metadata={"code": error.code, "hint": error.hint or "none", "exit_code": error.exit_code},
        allow_retries=retries and not in_vain,
    ) from error
