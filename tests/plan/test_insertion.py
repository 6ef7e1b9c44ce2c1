"""A service is added to a plan's text: comments, order and everything else stay as they were."""

import difflib
from pathlib import Path
from typing import Any

import pytest

from dr_pipelines.errors import PlanError
from dr_pipelines.plan import parse_plan
from dr_pipelines.plan.insertion import insert_service

SHIPPED = (Path(__file__).parents[2] / "recovery-plan.yaml").read_text()
SERVICE: dict[str, Any] = {
    "name": "shop",
    "title": 'The "shop": #1, ünïcode',
    "tier": "critical",
    "engine": "postgres",
    "backup": {"full": "0 3 * * *", "log": "continuous", "archive_timeout": "60s"},
    "validation": {
        "database": "shop",
        "smoke_queries": [{"name": "one", "sql": "SELECT true", "expect": "true"}],
        "application_query": "SELECT 1",
    },
}
RUNBOOK = {
    "name": "shop_restore",
    "title": "Shop loss",
    "service": "shop",
    "rto": "1h",
    "rpo": "15m",
    "steps": [{"name": "assess", "title": "Assess", "budget": "5m"}],
}
SMALL = """# top
plan_version: 1
tiers: [{name: critical, title: Critical, rto: 1h, rpo: 15m}]
services:
- name: api   # first
  title: API
  tier: critical
  unprotected: >-
    it is

    made anew

# about nothing
"""


def added_lines(before: str, after: str) -> list[str]:
    """The lines that are new; nothing may be gone."""
    changed = [line for line in difflib.ndiff(before.splitlines(True), after.splitlines(True)) if line[0] in "+-"]
    assert all(line.startswith("+ ") for line in changed), changed
    return [line[2:] for line in changed]


@pytest.mark.parametrize("text", [SHIPPED, SMALL, SMALL.rstrip("\n"), SHIPPED.rstrip() + "\n\n\n"])
def test_what_was_there_stays_as_it_was(text: str) -> None:
    added = insert_service(text, SERVICE, RUNBOOK)

    assert "".join(added_lines(text.rstrip("\n") + "\n", added.rstrip("\n") + "\n"))
    plan = parse_plan(added)
    assert plan.service("shop").title == SERVICE["title"]
    assert plan.services[:-1] == parse_plan(text).services
    assert plan.runbooks[-1].service == "shop"


def test_it_is_the_last_of_its_list_set_apart_as_the_others_are() -> None:
    added = insert_service(SHIPPED, SERVICE, RUNBOOK).splitlines()

    at = added.index("  - name: shop")
    assert added[at - 1] == "" and added[at - 2].startswith("    unprotected:")
    assert added.index("runbooks:") > at
    assert "  - name: shop_restore" in added


def test_comments_that_belong_to_the_last_entry_stay_with_it() -> None:
    text = SMALL.replace("    made anew\n", "    made anew\n  # by a script\n")

    added = insert_service(text, SERVICE, None)

    assert added.index("# by a script") < added.index("- name: shop") < added.index("# about nothing")


def test_a_file_of_another_system_keeps_its_line_ends() -> None:
    added = insert_service(SHIPPED.replace("\n", "\r\n"), SERVICE, RUNBOOK)

    assert added.count("\n") == added.count("\r\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALL.replace("services:\n", "services: [").replace("- name: api", "{name: api"), "recovery-plan"),
        ("plan_version: 1\n", "tiers"),
        ("tiers: [", "recovery-plan"),
    ],
)
def test_a_plan_that_cannot_be_accepted_is_left_alone(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        insert_service(text, SERVICE, None)


def test_a_list_in_one_line_is_not_edited() -> None:
    flow = (
        SMALL[: SMALL.index("services:")] + "services: [{name: api, title: API, tier: critical, unprotected: no need}]"
    )

    with pytest.raises(PlanError, match="by hand"):
        insert_service(flow, SERVICE, None)
    with pytest.raises(PlanError, match="by hand"):
        insert_service(SMALL + "runbooks: []\n", SERVICE, RUNBOOK)


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(PlanError, match="taken"):
        insert_service(SHIPPED, {**SERVICE, "name": "database"}, None)
