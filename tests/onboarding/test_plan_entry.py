"""The plan's entry: written where there is none, compared where there is one, and always one that is accepted."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dr_pipelines.errors import DrError, UsageError
from dr_pipelines.onboarding.items import Item, State, WriteFile
from dr_pipelines.onboarding.plan_entry import plan_item
from dr_pipelines.onboarding.server import Table
from dr_pipelines.onboarding.wishes import Wishes
from dr_pipelines.plan import RESTORE_STEPS, Level, Plan, inspect_plan, parse_plan
from tests.onboarding.made_up import SERVER, WISHES

PATH = Path("/opt/dr/recovery-plan.yaml")
SHIPPED = (Path(__file__).parents[2] / "recovery-plan.yaml").read_text()


def made(text: str | None, wishes: Wishes = WISHES, tables: tuple[Table, ...] = SERVER.tables) -> Item:
    return plan_item(text, PATH, wishes, replace(SERVER, tables=tables))


def written(item: Item) -> Plan:
    (act,) = item.acts
    assert isinstance(act, WriteFile)
    return parse_plan(act.content)


@pytest.mark.parametrize("text", [None, SHIPPED], ids=["no plan", "the shipped one"])
@pytest.mark.parametrize("rto", [None, timedelta(hours=2), timedelta(minutes=10), timedelta(seconds=45)])
def test_what_is_written_is_a_plan_with_headroom(text: str | None, rto: timedelta | None) -> None:
    item = made(text, replace(WISHES, rto=rto))

    plan = written(item)
    service, runbook = plan.service("shop"), plan.runbook_for("shop")
    assert (service.engine, service.validation and service.validation.database) == ("postgres", "shop")
    assert runbook is not None and tuple(step.name for step in runbook.steps) == RESTORE_STEPS
    assert sum((step.budget for step in runbook.steps), timedelta(0)) < runbook.rto
    assert plan.objectives("shop").rto == (rto or plan.tiers[0].rto)
    found = [entry for entry in inspect_plan(plan.text)[1] if "shop" in entry.where and entry.level is Level.WARNING]
    assert found == []


def test_the_queries_ask_what_is_true_of_the_data_now() -> None:
    odd = (Table("public", 'we"ird Täble'), Table("a", "same"), Table("b", "same"))

    validation = written(made(None, tables=odd)).service("shop").validation
    without = written(made(None, tables=())).service("shop").validation

    assert validation is not None and without is not None
    assert [query.sql for query in validation.smoke_queries] == ['SELECT EXISTS (SELECT FROM "public"."we""ird Täble")']
    assert [query.sql for query in without.smoke_queries] == ["SELECT true"]


def test_a_service_that_is_planned_as_asked_for_is_done() -> None:
    text = written(made(SHIPPED)).text

    assert made(text).state is State.DONE
    assert made(text, replace(WISHES, tier="critical", full="0 3 * * *")).state is State.DONE


def test_what_is_not_as_asked_for_is_shown_and_never_written() -> None:
    text = written(made(SHIPPED)).text

    item = made(text, replace(WISHES, full="0 5 * * *", rto=timedelta(minutes=30), database="postgres"))

    assert item.state is State.BY_HAND and not item.acts
    for line in ("-      full: 0 3 * * *", "+      full: 0 5 * * *", "+    rto: 30m", "+      database: postgres"):
        assert line in item.text.splitlines()


def test_queries_of_a_database_that_the_server_has_not_are_shown_with_ones_that_can_be_answered() -> None:
    item = made(SHIPPED, replace(WISHES, service="database"))  # the shipped plan asks a hotel's

    assert item.state is State.BY_HAND
    assert "-      database: hotel" in item.text and "+      database: shop" in item.text


def test_incremental_backups_that_are_planned_stay() -> None:
    text = written(made(SHIPPED)).text.replace(
        "archive_timeout: 1m", "archive_timeout: 1m\n      incremental: 0 9 * * *"
    )

    assert made(text).state is State.DONE


@pytest.mark.parametrize(
    ("text", "wishes", "said"),
    [
        (SHIPPED, replace(WISHES, service="redis"), "engine redis"),
        (SHIPPED, replace(WISHES, service="dev-test"), "engine none"),
        (SHIPPED, replace(WISHES, tier="golden"), "golden"),
        ("plan_version: 1\n", WISHES, "tiers"),
    ],
)
def test_what_the_plan_does_not_allow_is_refused(text: str, wishes: Wishes, said: str) -> None:
    with pytest.raises(DrError, match=said) as refused:
        made(text, wishes)

    assert refused.value.exit_code == UsageError.exit_code


def test_a_plan_that_cannot_be_edited_is_told_what_to_hold() -> None:
    flow = (
        "plan_version: 1\ntiers: [{name: a, title: A, rto: 1h, rpo: 15m}]\nservices: [{name: b, title: B, tier: a}]\n"
    )

    item = made(flow)

    assert item.state is State.BY_HAND and "by hand" in item.why
    assert "- name: shop" in item.text
