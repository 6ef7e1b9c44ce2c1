"""The job `answer_approval`: somebody's word to what waits for it, such as a cutover. Denied by default."""

from enum import Enum

import dagster as dg
from pydantic import Field

from assets.work import working

__all__ = ["ApprovalForm", "answer_approval", "approval_definitions"]


class Word(Enum):
    """What can be answered."""

    approved = "approved"
    denied = "denied"


class ApprovalForm(dg.Config):
    """The answer. What is asked stands in the log of the run that waits, and in `dr approvals`."""

    execution_id: str = Field(description="The execution that asks, such as 20260301T120000Z-restore-9f86d0.")
    target: str = Field(description="The target that it asks about: an approval is of no use for another one.")
    decision: Word = Field(description="approved or denied; it is not taken back.")
    by: str = Field(description="Who you are; it stands in the record.")
    reason: str = Field(description="Why, in a few words; it stands in the record.")
    confirmed: list[str] = Field(
        default_factory=list,
        description="What you vouch for, by the names that the request has, such as old-server-is-down.",
    )


@dg.op(description="Stores the answer, where it fits what is asked; whoever waits goes on within a second.")
def answer(context: dg.OpExecutionContext, config: ApprovalForm) -> None:
    from dr_pipelines.repository.approvals import Approvals, Decision

    with working(context, "answer") as work:
        now = work.around.clock.wall()
        approval = Approvals(work.around.repository.store, config.execution_id).answer(
            Decision(config.decision.value),
            target=config.target,
            by=config.by,
            now=now,
            reason=config.reason,
            confirmed=tuple(config.confirmed),
        )
        context.log.info(f"{config.execution_id}: {approval.told}")


@dg.graph(description="Approves what an execution waits for, or denies it.")
def answer_approval() -> None:
    answer()


def approval_definitions() -> dg.Definitions:
    """The job. It has no turn to wait for: what it answers is a run that waits."""
    job = answer_approval.to_job(
        name="answer_approval",
        description=answer_approval.description,
        executor_def=dg.in_process_executor,
        tags={"dagster/max_retries": "0", "dagster/priority": "20"},
    )
    return dg.Definitions(jobs=[job])
