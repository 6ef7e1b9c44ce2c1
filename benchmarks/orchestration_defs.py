"""The project's own code location with one job more, so that what is timed pays the same imports."""

import dagster as dg

import definitions


@dg.op
def first() -> int:
    """Nothing."""
    return 1


@dg.op
def second(before: int) -> int:
    """Nothing, after the first."""
    return before


@dg.job(executor_def=dg.in_process_executor)
def two_steps() -> None:
    """Two ops that do nothing."""
    second(first())


defs = dg.Definitions.merge(definitions.defs, dg.Definitions(jobs=[two_steps]))
