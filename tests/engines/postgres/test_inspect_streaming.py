"""What a streamed server's setup means: what loses data, fills the disk or lets no commit through is found."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.engines.postgres.inspect_streaming import Receiving, SlotState, StreamingSetup, judge_streaming

OURS = Receiving("dr_database", flushes=True)
SLOT = SlotState(active=True, wal_status="reserved", held_bytes=1 << 20)
ASYNCHRONOUS = StreamingSetup("dr_database", SLOT, 1 << 30, "", "on", ())
SYNCHRONOUS = replace(ASYNCHRONOUS, synchronous_names="dr_database", awaited=(OURS,))
MINUTE, ZERO = timedelta(minutes=1), timedelta(0)


def worse(
    setup: StreamingSetup, *, streams: bool = True, rpo: timedelta | None = MINUTE, here: bool = False
) -> list[Finding]:
    found = judge_streaming(setup, "database", streams=streams, rpo=rpo, agent_is_here=here)
    assert all(finding.mend for finding in found if finding.level is not Level.OK)
    return [finding for finding in found if finding.level is not Level.OK]


def test_a_good_setup_has_nothing_to_mend() -> None:
    assert worse(ASYNCHRONOUS, here=True) == []
    assert worse(SYNCHRONOUS, rpo=ZERO) == []
    assert worse(replace(ASYNCHRONOUS, slot=None, keep_size=None), streams=False) == []


@pytest.mark.parametrize(
    ("changed", "level", "looked_at", "said"),
    [
        ({"slot": None}, Level.PROBLEM, "the replication slot", "never streamed"),
        ({"slot": replace(SLOT, active=False)}, Level.PROBLEM, "the replication slot", "nobody receives"),
        ({"slot": replace(SLOT, wal_status="lost")}, Level.PROBLEM, "the replication slot", "hole"),
        ({"slot": replace(SLOT, wal_status="unreserved")}, Level.PROBLEM, "the replication slot", "next checkpoint"),
        ({"keep_size": None}, Level.PROBLEM, "max_slot_wal_keep_size", "the server stops"),
        ({"awaited": ()}, Level.PROBLEM, "synchronous commits", "no commit comes back"),
        ({"awaited": (replace(OURS, flushes=False),)}, Level.PROBLEM, "synchronous commits", "no commit comes back"),
        ({"awaited": None}, Level.WARNING, "synchronous commits", "may not see"),
        ({"synchronous_commit": "off"}, Level.WARNING, "synchronous commits", "do not wait"),
        ({"synchronous_commit": "local"}, Level.WARNING, "synchronous commits", "do not wait"),
    ],
)
def test_what_is_wrong_is_found(changed: dict[str, Any], level: Level, looked_at: str, said: str) -> None:
    (finding,) = worse(replace(SYNCHRONOUS, **changed))
    assert (finding.level, finding.looked_at) == (level, looked_at)
    assert said in finding.seen


def test_an_rpo_of_zero_takes_commits_that_wait() -> None:
    (finding,) = worse(ASYNCHRONOUS, rpo=ZERO)
    assert (finding.level, finding.looked_at) == (Level.PROBLEM, "synchronous commits")
    (finding,) = worse(replace(SYNCHRONOUS, synchronous_commit="local"), rpo=ZERO)
    assert finding.level is Level.PROBLEM


def test_commits_that_wait_for_an_agent_on_the_same_host_gain_nothing() -> None:
    (finding,) = worse(SYNCHRONOUS, here=True)
    assert (finding.level, finding.looked_at) == (Level.WARNING, "synchronous commits")


def test_a_slot_that_was_left_behind_is_found() -> None:
    (finding,) = worse(ASYNCHRONOUS, streams=False)
    assert (finding.level, finding.looked_at) == (Level.PROBLEM, "the replication slot")
    assert "fill pg_wal" in finding.seen
