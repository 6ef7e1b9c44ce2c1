"""Approvals: denied by default, of use for one execution and one target, and never twice."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dr_pipelines.errors import UsageError
from dr_pipelines.repository.approvals import (
    STANDINGS,
    Approval,
    Approvals,
    Decision,
    Request,
    Standing,
    approvals_of_all,
)
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.sealed import seal, unseal

EXECUTION, TARGET = "20260301T120000Z-restore-9f86d0", "/srv/restored/data"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=31)


def request(**changes: object) -> Request:
    said: dict[str, object] = {
        "execution_id": EXECUTION,
        "target": TARGET,
        "what": "cutover",
        "service": "database",
        "requested_at": NOW,
        "requested_by": "ada",
        "expires_at": NOW + timedelta(minutes=30),
    }
    return Request.model_validate(said | changes)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "repository")


@pytest.fixture
def approvals(store: FolderStore) -> Approvals:
    return Approvals(store, EXECUTION)


def approve(approvals: Approvals, **changes: object) -> Approval:
    said: dict[str, object] = {"target": TARGET, "by": "grace", "now": NOW, "reason": "go"}
    return approvals.answer(Decision.APPROVED, **(said | changes))  # type: ignore[arg-type]


def test_what_nobody_answers_waits_and_then_has_expired(approvals: Approvals) -> None:
    number = approvals.ask(request())

    assert approvals.look(number, NOW).standing is Standing.WAITING
    expired = approvals.look(number, LATER)
    assert expired.standing is Standing.EXPIRED
    assert not expired.allows(EXECUTION, TARGET)


def test_an_approval_allows_that_and_nothing_else(approvals: Approvals) -> None:
    approvals.ask(request())

    approval = approve(approvals)

    assert approval.allows(EXECUTION, TARGET)
    assert not approval.allows(EXECUTION, "/srv/restored/other")
    assert not approval.allows("20260301T120000Z-restore-000000", TARGET)
    assert approval.told == "approved by grace at 2026-03-01T12:00:00.000000Z: go"


def test_an_approval_that_nobody_made_use_of_expires(approvals: Approvals) -> None:
    number = approvals.ask(request())
    approve(approvals)

    assert approvals.look(number, LATER).standing is Standing.EXPIRED


def test_what_is_denied_stays_denied(approvals: Approvals) -> None:
    number = approvals.ask(request())
    approvals.answer(Decision.DENIED, target="", by="grace", now=NOW, reason="not now")

    assert approvals.look(number, NOW).standing is Standing.DENIED
    assert approvals.look(number, LATER).standing is Standing.DENIED
    with pytest.raises(UsageError, match="waits for an approval any more: denied by grace"):
        approve(approvals)


def test_every_standing_is_that_of_the_table() -> None:
    assert {key for key, standing in STANDINGS.items() if standing is Standing.APPROVED} == {(Decision.APPROVED, False)}
    assert set(STANDINGS) == {(answer, over) for answer in (None, *Decision) for over in (False, True)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "/srv/restored/other"}, "not that of the request"),
        ({"target": ""}, "not that of the request"),
        ({"by": " "}, "nobody is named"),
        ({"confirmed": ("anything",)}, "nobody asked for the confirmation"),
        ({"now": LATER}, "expired"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_and_the_request_stays_as_it_was(
    approvals: Approvals, changes: dict[str, object], said: str
) -> None:
    number = approvals.ask(request())

    with pytest.raises(UsageError, match=said):
        approve(approvals, **changes)

    assert approvals.look(number, NOW).standing is Standing.WAITING


def test_to_approve_is_to_confirm_what_has_to_be_confirmed(approvals: Approvals) -> None:
    approvals.ask(request(confirmations={"it-is-down": "the server is down"}))

    with pytest.raises(UsageError, match="it-is-down: the server is down"):
        approve(approvals)

    assert approve(approvals, confirmed=("it-is-down",)).allows(EXECUTION, TARGET)


def test_where_nothing_is_asked_there_is_nothing_to_answer(approvals: Approvals) -> None:
    with pytest.raises(UsageError, match="waits for an approval"):
        approve(approvals)


def test_of_two_answers_the_first_one_counts(approvals: Approvals, store: FolderStore) -> None:
    number = approvals.ask(request())
    store.put(f"executions/{EXECUTION}/approvals/000001/answer.json", [answer_of(store, decision="denied")])

    with pytest.raises(UsageError, match="denied by grace"):
        approve(approvals)

    assert approvals.look(number, NOW).standing is Standing.DENIED


def answer_of(store: FolderStore, **changes: object) -> bytes:
    """A sealed answer to the first request as an approver would have given it, but for the changes."""
    other = Approvals(store, EXECUTION)
    key = f"executions/{EXECUTION}/approvals/000001"
    kept = store.get(f"{key}/answer.json") if store.info(f"{key}/answer.json") else None
    if kept is None:
        approve(other)
        kept = store.get(f"{key}/answer.json")
        store.delete(f"{key}/answer.json")
    return seal({**unseal(kept, what="answer"), **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "/srv/restored/other"}, "the answer is for /srv/restored/other"),
        ({"execution_id": "20260301T120000Z-restore-000000"}, "of 20260301T120000Z-restore-000000"),
        ({"request_sha256": "0" * 64}, "the answer is for another request"),
        ({"at": "2026-03-01T12:30:00Z"}, "too late"),
        ({"decision": "perhaps"}, "cannot be read"),
        ({"approval_version": 2}, "cannot be read"),
    ],
)
def test_an_answer_that_was_not_given_to_this_request_denies_it(
    approvals: Approvals, store: FolderStore, changes: dict[str, object], said: str
) -> None:
    number = approvals.ask(request())
    store.put(f"executions/{EXECUTION}/approvals/000001/answer.json", [answer_of(store, **changes)])

    approval = approvals.look(number, NOW)

    assert approval.standing is Standing.DENIED
    assert not approval.allows(EXECUTION, TARGET)
    assert said in approval.told


@pytest.mark.parametrize("name", ["request.json", "answer.json"])
@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: data.replace(b"a", b"b"), lambda data: b""])
def test_what_cannot_be_read_is_denied(
    approvals: Approvals, store: FolderStore, name: str, damage: Callable[[bytes], bytes]
) -> None:
    number = approvals.ask(request())
    approve(approvals)
    key = f"executions/{EXECUTION}/approvals/000001/{name}"
    store.put(key, [damage(store.get(key))])

    approval = approvals.look(number, NOW)

    assert approval.standing is Standing.DENIED
    assert not approval.allows(EXECUTION, TARGET)


def test_a_request_copied_to_another_execution_is_denied_there(store: FolderStore, approvals: Approvals) -> None:
    approvals.ask(request())
    approve(approvals)
    other = "20260301T130000Z-restore-abcdef"
    for name in ("request.json", "answer.json"):
        data = store.get(f"executions/{EXECUTION}/approvals/000001/{name}")
        store.put(f"executions/{other}/approvals/000001/{name}", [data])

    approval = Approvals(store, other).look(1, NOW)

    assert approval.standing is Standing.DENIED
    assert not approval.allows(other, TARGET)


def test_a_request_that_is_asked_anew_is_the_one_that_is_answered(approvals: Approvals) -> None:
    first = approvals.ask(request())
    approvals.answer(Decision.DENIED, target="", by="grace", now=NOW, reason="")
    second = approvals.ask(request(requested_at=NOW + timedelta(minutes=1)))

    approve(approvals)

    assert (first, second) == (1, 2)
    assert approvals.look(first, NOW).standing is Standing.DENIED
    assert approvals.look(second, NOW).standing is Standing.APPROVED


@pytest.mark.parametrize(
    "changes",
    [
        {"execution_id": "20260301T120000Z-restore-000000"},
        {"expires_at": NOW},
        {"expires_at": NOW + timedelta(hours=25)},
    ],
)
def test_a_request_of_another_execution_or_open_for_ever_is_none(
    approvals: Approvals, changes: dict[str, object]
) -> None:
    with pytest.raises(ValueError):
        approvals.ask(request(**changes))


def test_all_are_listed_whatever_else_lies_among_the_executions(store: FolderStore, approvals: Approvals) -> None:
    other = "20260302T120000Z-restore-abcdef"
    approvals.ask(request())
    Approvals(store, other).ask(request(execution_id=other))
    store.put("executions/some where/approvals/000001/request.json", [b"{}"])
    store.put(f"executions/{EXECUTION}/approvals/x/request.json", [b"{}"])

    found = approvals_of_all(store, NOW)

    assert [(approval.execution_id, approval.standing) for approval in found] == [
        (other, Standing.WAITING),
        (EXECUTION, Standing.WAITING),
    ]
