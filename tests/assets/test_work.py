"""What surrounds the work of every op."""

from pathlib import Path

import dagster as dg
import pytest

from assets.work import OnFailure, working
from dr_pipelines.errors import DrError, RepositoryUnreachable, TargetRefused, UsageError
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.settings import Settings


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DR_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("DR_REPOSITORY", str(tmp_path / "repository"))
    monkeypatch.delenv("DR_PROGRESS", raising=False)
    open_repository(str(tmp_path / "repository"), settings=Settings(), create=True)


def carry_out(
    error: BaseException | None, *, retries: bool = False, on_failure: OnFailure | None = None, late: bool = False
) -> tuple[dg.Failure | None, list[str]]:
    """Let an op do work that ends with this error; returns what Dagster was told, and the op's warnings."""
    told: list[dg.Failure] = []

    @dg.op
    def some_op(context: dg.OpExecutionContext) -> None:
        if late:
            context.instance.report_run_failed(context.run)
        try:
            with working(context, "some_op", on_failure, retries=retries):
                if error is not None:
                    raise error
        except dg.Failure as failure:
            told.append(failure)
            raise

    @dg.job(executor_def=dg.in_process_executor)
    def some_job() -> None:
        some_op()

    with dg.DagsterInstance.ephemeral() as instance:
        result = some_job.execute_in_process(instance=instance, raise_on_error=False)
        lines = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level == 30]
    return (told[0] if told else None), lines


def test_an_error_is_told_with_what_to_do_next() -> None:
    failure, _ = carry_out(TargetRefused("/srv/data is not empty", hint="give a new folder"))
    assert failure is not None
    assert failure.description == "/srv/data is not empty\ngive a new folder"
    assert failure.metadata["code"].value == "target-refused"
    assert failure.allow_retries is False


@pytest.mark.parametrize(
    ("error", "retries", "again"),
    [
        (RepositoryUnreachable("it did not answer"), True, True),
        (RepositoryUnreachable("it did not answer"), False, False),
        (UsageError("no such service"), True, False),
    ],
)
def test_only_what_may_be_retried_and_can_come_out_otherwise_is(error: DrError, retries: bool, again: bool) -> None:
    failure, _ = carry_out(error, retries=retries)
    assert failure is not None and failure.allow_retries is again


def test_a_run_that_was_given_up_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    failure, _ = carry_out(None, late=True, on_failure=lambda around, error: done.append(error))
    assert failure is not None and "came up too late" in (failure.description or "")
    assert done == []


def test_what_is_to_be_done_after_a_failure_is_done_with_every_kind_of_error() -> None:
    done: list[str] = []
    carry_out(TargetRefused("not empty"), on_failure=lambda around, error: done.append(error))
    carry_out(ZeroDivisionError("a bug"), on_failure=lambda around, error: done.append(error))
    assert done == ["not empty", "ZeroDivisionError('a bug')"]


def test_a_failure_that_cannot_be_closed_is_told_beside_the_failure_itself() -> None:
    def refuse(*_: object) -> None:
        raise RepositoryUnreachable("the repository is away")

    failure, warnings = carry_out(TargetRefused("not empty"), on_failure=refuse)
    assert failure is not None and failure.description == "not empty"
    assert warnings == ["what failed could not be closed properly: the repository is away"]
