"""Approvals: what somebody else has to agree to before it is done, and what was answered. Denied by default.

A request says what is to be done, for which execution and to which target, and until when the answer holds. It and its
answer lie in the execution's journal, `executions/<execution id>/approvals/<number>/`; both are put if absent and
never changed. Of several answers the first one counts; an answer names the execution, the target and the request that
it is for, and is of no use for any other.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from dr_pipelines.errors import ObjectCorrupt, ObjectMissing, UsageError
from dr_pipelines.repository.identifiers import check_name
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Store
from dr_pipelines.timing import format_moment

__all__ = [
    "APPROVAL_VERSION",
    "LONGEST",
    "Answer",
    "Approval",
    "Approvals",
    "Decision",
    "Request",
    "Standing",
    "approvals_of_all",
]

APPROVAL_VERSION: Literal[1] = 1
LONGEST = timedelta(hours=24)
"""No request stays open for longer: what was true of it then may not be any more."""
_KEY = re.compile(r"executions/([A-Za-z0-9][A-Za-z0-9._-]{0,99})/approvals/([0-9]{1,9})/request\.json")


class Decision(StrEnum):
    """What an answer says."""

    APPROVED = "approved"
    DENIED = "denied"


class Standing(StrEnum):
    """How a request stands."""

    WAITING = "waiting"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"


STANDINGS: Mapping[tuple[Decision | None, bool], Standing] = {
    (None, False): Standing.WAITING,
    (None, True): Standing.EXPIRED,
    (Decision.APPROVED, False): Standing.APPROVED,
    (Decision.APPROVED, True): Standing.EXPIRED,
    (Decision.DENIED, False): Standing.DENIED,
    (Decision.DENIED, True): Standing.DENIED,
}
"""By the answer, and by whether the request's time is over. Only APPROVED lets anything begin; what cannot be read is
DENIED. What had begun by the time that it expired is gone on with."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    approval_version: Literal[1] = APPROVAL_VERSION
    execution_id: str
    target: str


class Request(_Document):
    """What is asked for."""

    what: str
    """What will be done, in a line: "cutover"."""
    service: str
    facts: dict[str, str] = Field(default_factory=dict)
    """What whoever decides has to know, by name, each in a line."""
    confirmations: dict[str, str] = Field(default_factory=dict)
    """What has to be confirmed with the approval, by name: what nobody but a person can know."""
    requested_at: AwareDatetime
    requested_by: str
    expires_at: AwareDatetime


class Answer(_Document):
    """What was answered."""

    request_sha256: str
    """Of the request as it is stored."""
    decision: Decision
    confirmed: tuple[str, ...] = ()
    """The request's confirmations that were given, by name."""
    by: str
    at: AwareDatetime
    reason: str


@dataclass(frozen=True)
class Approval:
    """A request and how it stands."""

    execution_id: str
    number: int
    standing: Standing
    request: Request | None
    """None where it cannot be read, which denies it."""
    answer: Answer | None
    problem: str | None = None
    """What of it cannot be read, or does not fit."""

    def allows(self, execution_id: str, target: str) -> bool:
        """Whether it lets that be done for this execution and this target."""
        return (
            self.standing is Standing.APPROVED
            and self.request is not None
            and self.answer is not None
            and (self.request.execution_id, self.request.target) == (execution_id, target)
        )

    @property
    def told(self) -> str:
        """How it stands, in a line."""
        if self.problem is not None:
            return f"denied: {self.problem}"
        answer, request = self.answer, self.request
        if self.standing is Standing.EXPIRED and request is not None:
            return f"expired at {format_moment(request.expires_at)}"
        if answer is not None:
            why = f": {answer.reason}" if answer.reason else ""
            return f"{answer.decision} by {answer.by} at {format_moment(answer.at)}{why}"
        return str(self.standing)


class Approvals:
    """The approvals of one execution; `store` is the root of the repository that its journal is in."""

    def __init__(self, store: Store, execution_id: str) -> None:
        self.execution_id = check_name(execution_id, "execution")
        self._store = store.child(f"executions/{self.execution_id}/approvals")

    def ask(self, request: Request) -> int:
        """Store a request; returns its number. Raises ValueError where it is another execution's, or open too long."""
        if request.execution_id != self.execution_id:
            raise ValueError(f"a request of {request.execution_id} has no place among those of {self.execution_id}")
        if not timedelta(0) < request.expires_at - request.requested_at <= LONGEST:
            raise ValueError(f"a request stays open for more than nothing and at most {LONGEST}")
        data = seal(request.model_dump(mode="json"))
        number = max(self.numbers(), default=0) + 1
        while not self._store.put_if_absent(f"{number:06d}/request.json", [data]):
            # A bucket whose answer was lost refuses the retry for the object that it has just stored.
            if self._store.get(f"{number:06d}/request.json") == data:
                break
            number += 1
        return number

    def numbers(self) -> list[int]:
        """Every request's number, oldest first."""
        names = (name.removesuffix("/") for name in self._store.names(""))
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def latest(self, now: datetime) -> Approval | None:
        """How the newest request stands; None where there is none."""
        numbers = self.numbers()
        return self.look(numbers[-1], now) if numbers else None

    def look(self, number: int, now: datetime) -> Approval:
        """How a request stands. What cannot be read, or does not fit together, is denied."""
        request = answer = None
        try:
            data = self._store.get(f"{number:06d}/request.json")
            request = Request.model_validate(unseal(data, what="the request"))
            answer = self._answer(number)
            problem = _misfit(self.execution_id, data, request, answer)
        except (ObjectCorrupt, ObjectMissing, ValidationError) as error:
            problem = f"it cannot be read: {error}"
        if problem is not None or request is None:
            return Approval(self.execution_id, number, Standing.DENIED, request, answer, problem)
        standing = STANDINGS[answer.decision if answer is not None else None, now >= request.expires_at]
        return Approval(self.execution_id, number, standing, request, answer)

    def answer(
        self,
        decision: Decision,
        *,
        target: str,
        by: str,
        now: datetime,
        reason: str,
        confirmed: tuple[str, ...] = (),
    ) -> Approval:
        """Answer the newest request; returns how it stands then.

        To approve is to name the target as the request does and to confirm what it wants to be confirmed. Raises
        UsageError where there is nothing to answer, or where that is not so; then nothing is stored.
        """
        approval = self._require_waiting(now)
        request = approval.request
        assert request is not None
        if not by.strip():
            raise UsageError("nobody is named who answers", hint="say who you are: it stands in the record")
        if target != request.target and not (decision is Decision.DENIED and not target):
            raise UsageError(
                f"the target {target or '(none)'} is not that of the request, {request.target}",
                hint="an approval names the execution and the target that are asked about; look at both again",
            )
        unknown = [name for name in confirmed if name not in request.confirmations]
        missing = [name for name in request.confirmations if name not in confirmed]
        if unknown:
            raise UsageError(f"nobody asked for the confirmation {unknown[0]}", hint="leave it out")
        if decision is Decision.APPROVED and missing:
            raise UsageError(
                f"to approve is to confirm {missing[0]}: {request.confirmations[missing[0]]}",
                hint="confirm it where you know it to be so, or deny",
            )
        answer = Answer(
            execution_id=self.execution_id,
            target=request.target,
            request_sha256=_sha256(self._store.get(f"{approval.number:06d}/request.json")),
            decision=decision,
            confirmed=confirmed,
            by=by.strip(),
            at=now,
            reason=reason.strip(),
        )
        self._store.put_if_absent(f"{approval.number:06d}/answer.json", [seal(answer.model_dump(mode="json"))])
        stands = self.look(approval.number, now)
        if stands.answer != answer:
            raise UsageError(f"the request was answered in this moment: {stands.told}")
        return stands

    def _require_waiting(self, now: datetime) -> Approval:
        approval = self.latest(now)
        if approval is None:
            raise UsageError(
                f"nothing of the execution {self.execution_id} waits for an approval",
                hint="dr approvals lists what does",
            )
        if approval.standing is not Standing.WAITING:
            raise UsageError(
                f"nothing of the execution {self.execution_id} waits for an approval any more: {approval.told}",
                hint="an answer is not taken back; where the execution goes on, it asks anew",
            )
        return approval

    def _answer(self, number: int) -> Answer | None:
        try:
            data = self._store.get(f"{number:06d}/answer.json")
        except ObjectMissing:
            return None
        return Answer.model_validate(unseal(data, what="the answer"))


def approvals_of_all(store: Store, now: datetime) -> list[Approval]:
    """How every request stands, of every execution whose journal is in this repository, newest execution first."""
    keys = (_KEY.fullmatch(entry.key) for entry in store.list("executions/"))
    found = {(match[1], int(match[2])) for match in keys if match is not None}
    return [Approvals(store, execution_id).look(number, now) for execution_id, number in sorted(found, reverse=True)]


def _misfit(execution_id: str, data: bytes, request: Request, answer: Answer | None) -> str | None:
    if request.execution_id != execution_id:
        return f"the request is of another execution, {request.execution_id}"
    if answer is None:
        return None
    if (answer.execution_id, answer.target) != (execution_id, request.target):
        return f"the answer is for {answer.target} of {answer.execution_id}"
    if answer.request_sha256 != _sha256(data):
        return "the answer is for another request"
    if answer.at >= request.expires_at:
        return f"the answer came at {format_moment(answer.at)}, too late"
    if answer.decision is Decision.APPROVED and set(request.confirmations) - set(answer.confirmed):
        return "the answer lacks a confirmation"
    return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
