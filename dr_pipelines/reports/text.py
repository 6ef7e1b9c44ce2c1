"""Words and figures as reports show them."""

import re
from datetime import UTC, datetime, timedelta

from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.runbooks.record import Estimated, Phases, Record
from dr_pipelines.timing import format_duration

__all__ = [
    "KIND_TITLES",
    "VERDICT_MARKS",
    "age_text",
    "beside",
    "cutover_of",
    "estimate_text",
    "moment_text",
    "phases_of",
    "printable",
    "seconds_text",
    "share_text",
    "words",
]

KIND_TITLES = {"drill": "Drill", "restore": "Real restore", "restore_test": "Restore test"}
VERDICT_MARKS = {Verdict.MET: "✓", Verdict.MISSED: "✗", Verdict.UNVERIFIED: "?"}

# Control characters could drive a terminal, marks of direction show one text as another, a lone surrogate cannot be
# encoded: a record's words are others' words.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str) -> str:
    """The text on one line, with what could act on a terminal or a page instead of being read made visible."""
    return _UNPRINTABLE.sub("�", re.sub(r"[\r\n\t\v\f]+", " ", text))


def words(name: str) -> str:
    """A name of the plan as words: "restore_latest_backup" becomes "restore latest backup"."""
    return printable(name.replace("_", " "))


def seconds_text(seconds: float | None) -> str:
    """A measured duration, or that there is none."""
    return format_duration(timedelta(seconds=seconds)) if seconds is not None else "not measured"


def beside(seconds: float | None, promised: timedelta | None) -> str:
    """What was measured beside what was promised: "4.2s / 1h"."""
    return f"{seconds_text(seconds)} / {format_duration(promised) if promised is not None else 'nothing'}"


def share_text(part: float, whole: float) -> str:
    """How much of the whole the part is, with a digit more where it is small: "<0.1 %", "0.4 %", "12 %", "130 %"."""
    percent = 100 * part / whole
    if percent < 0.05:
        return "<0.1 %" if percent > 0 else "0 %"
    return f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"


def moment_text(moment: datetime | None) -> str:
    """A moment for people, in UTC, to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment is not None else "not known"


def age_text(then: datetime, now: datetime) -> str:
    """How long ago, in the largest unit that fits: "3 days ago"."""
    seconds = (now - then).total_seconds()
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now" if seconds >= 0 else "in the future: a clock is wrong"


def cutover_of(record: Record) -> list[tuple[str, str]]:
    """What is told of a cutover, by name; nothing where there was none."""
    cutover = record.cutover
    if cutover is None:
        return []
    approval = cutover.approval
    who = f" by {approval.by}" if approval is not None and approval.by else ""
    waited = (
        f", after {seconds_text(approval.waited_seconds)}"
        if approval is not None and approval.waited_seconds is not None
        else ""
    )
    return [
        ("cutover", f"from {cutover.old_server} to {cutover.new_server}"),
        ("approval", f"{approval.standing}{who}{waited}" if approval is not None else "never asked for"),
        ("old server", f"fenced: {cutover.fenced_by}" if cutover.fenced_by is not None else "NOT FENCED"),
        ("clients", f"led by {cutover.clients_led_by}" if cutover.clients_led_by is not None else "not led anywhere"),
        ("new backup", cutover.backup_id or "NONE"),
        *(("see to", note) for note in cutover.notes),
    ]


def estimate_text(estimate: Estimated) -> str:
    """What the restore was expected to take, beside what it took."""
    expected, low, high = (
        seconds_text(value) for value in (estimate.estimate_seconds, estimate.low_seconds, estimate.high_seconds)
    )
    told = f"{expected} ({low} to {high}) for the steps after the assessment, before they began"
    if estimate.actual_seconds is None:
        return f"{told}; not all of them went through at the first attempt, so it cannot be compared"
    return f"{told}; they took {seconds_text(estimate.actual_seconds)}"


def phases_of(record: Record) -> list[tuple[str, float | None]]:
    """The phases by name, in their order; `detect` only where there was anything to detect, waiting for an `approval`
    and the `cutover` only where one was asked for."""
    phases: Phases = record.phases
    named = [
        ("decide", phases.decide),
        ("restore", phases.restore),
        ("validate", phases.validate_),
        *([("approval", phases.approval), ("cutover", phases.cutover)] if record.cutover is not None else []),
        ("healthy", phases.healthy),
    ]
    return ([("detect", phases.detect)] if phases.detect is not None else []) + named
