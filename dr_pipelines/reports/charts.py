"""The report's charts: how an execution went in time, its steps beside their budgets, its figures over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from markupsafe import Markup

from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.reports.adherence import History
from dr_pipelines.reports.svg import Drawing, Scale, duration_ticks
from dr_pipelines.reports.text import VERDICT_MARKS, phases_of, seconds_text, share_text, words
from dr_pipelines.runbooks.record import Record, StepResult
from dr_pipelines.timing import format_duration

__all__ = ["budgets", "history_plot", "timeline"]

_WIDTH, _LEFT, _PLOT = 960.0, 170.0, 550.0
_LANE, _BAR, _THIN = 30.0, 14.0, 3.0
_NEAR = 1.6
"""A promise or a budget is drawn to scale up to this many times what was measured; beyond that it is told in words."""


def timeline(record: Record, promised: timedelta | None, name: str) -> Markup:
    """How an execution went, from the outage's start: phases as a band, each attempt at a step, the promised RTO."""
    start = record.outage_started_at or record.started_at
    spans = _spans(record, start)
    back = _since(start, record.service_restored_at)
    last = max([back or 0.0, *(span.end for span in spans), 0.001])
    near = promised is not None and promised.total_seconds() <= last * _NEAR
    end = max(last, promised.total_seconds()) if near and promised is not None else last
    scale = Scale(end * 1.04, _LEFT, _PLOT)
    lanes = list(dict.fromkeys(span.step.name for span in spans))
    top = 26.0
    bottom = top + _LANE * (len(lanes) + 1)
    drawing = Drawing(name, "How it went", _timeline_words(record, spans), _WIDTH, bottom + 40)
    drawing.time_axis(scale, top - 4, bottom)
    drawing.text(
        "axis", scale.left, bottom + 32, "time since the outage's start" if record.outage_started_at else "time"
    )
    _phase_band(drawing, record, scale, top)
    for number, lane in enumerate(lanes, start=1):
        y = top + _LANE * number
        drawing.text("label", _LEFT - 12, y + _BAR, words(lane), "end")
        _lane(drawing, [span for span in spans if span.step.name == lane], scale, y)
    if back is not None:
        drawing.line("mark", scale.x(back), top - 8, scale.x(back), bottom)
        drawing.text("marked", scale.x(back), top - 12, f"service back after {seconds_text(back)}", "end")
    if promised is not None:
        _promise(drawing, scale, promised.total_seconds(), near, top, bottom)
    return drawing.to_svg()


def budgets(record: Record, name: str) -> Markup:
    """Each attempt at a step as long as it took, in the outline of its budget, all from the same zero."""
    steps = [step for step in record.steps if step.seconds is not None or step.budget_seconds is not None]
    longest = max([0.001, *(max(step.seconds or 0, step.budget_seconds or 0) for step in steps)])
    scale = Scale(longest * 1.02, _LEFT, _PLOT)
    top = 8.0
    bottom = top + _LANE * len(steps)
    drawing = Drawing(name, "Steps beside their budgets", _budget_words(steps), _WIDTH, bottom + 40)
    drawing.time_axis(scale, top, bottom)
    drawing.text("axis", scale.left, bottom + 32, "time within the step")
    for number, step in enumerate(steps):
        y = top + _LANE * number + 4
        drawing.text("label", _LEFT - 12, y + _BAR, _step_title(step), "end")
        if step.seconds is not None:
            width = max(scale.x(step.seconds) - scale.left, _THIN)
            drawing.rect(_bar(step), scale.left, y + 3, width, _BAR, _took(step))
        if step.budget_seconds is not None:
            # Over the bar, so that an overrun does not cover what it overran.
            limit = scale.x(step.budget_seconds)
            told = f"budget {seconds_text(step.budget_seconds)}"
            drawing.rect("budget", scale.left, y - 1, limit - scale.left, _BAR + 8, told)
            warned = scale.x(step.budget_seconds * 0.8)
            drawing.line("warn", warned, y - 1, warned, y + _BAR + 7)
            drawing.line("limit", limit, y - 1, limit, y + _BAR + 7)
        drawing.text("figure over" if step.overrun else "figure", scale.right + 12, y + _BAR, _took(step))
    return drawing.to_svg()


def history_plot(history: History, objective: str, promised: timedelta | None, name: str) -> Markup:
    """One objective's figures, execution by execution, oldest first; what was not measured is marked at the foot."""
    values = [record.rto_seconds if objective == "RTO" else record.rpo_seconds for record in history.records]
    measured = [value for value in values if value is not None]
    highest = max([*measured, 1.0])
    near = promised is not None and promised.total_seconds() <= highest * _NEAR
    limit = max(highest, promised.total_seconds()) if near and promised is not None else highest
    drawing = Drawing(name, f"{objective} over time", _history_words(history, objective, values), 460, 176)
    left, right, top, bottom = 56.0, 446.0, 30.0, 140.0

    def height(seconds: float) -> float:
        return bottom - (bottom - top) * seconds / (limit * 1.1)

    for seconds in duration_ticks(limit * 1.1, at_most=4):
        drawing.line("grid", left, height(seconds), right, height(seconds))
        label = format_duration(timedelta(seconds=seconds)) if seconds else "0"
        drawing.text("tick", left - 8, height(seconds) + 4, label, "end")
    if promised is not None:
        told = f"promised {format_duration(promised)}"
        if near:
            y = height(promised.total_seconds())
            drawing.line("promise", left, y, right, y)
            drawing.text("promised", right, y - 5, told, "end")
        else:
            drawing.text("promised", right, top - 14, f"↑ {told}, off this scale", "end")
    gap = (right - left) / len(values)
    for number, (record, value) in enumerate(zip(history.records, values, strict=True)):
        x = left + gap * (number + 0.5)
        tip = f"{record.started_at:%Y-%m-%d}: {seconds_text(value)}, {record.execution_id}"
        if value is None:
            drawing.text("unmeasured", x, bottom - 4, VERDICT_MARKS[Verdict.UNVERIFIED], "middle")
        elif promised is not None and value > promised.total_seconds():
            y = height(value)
            drawing.path("dot over", [(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)], closed=True, tip=tip)
        else:
            drawing.circle("dot", x, height(value), 4.5, tip)
    drawing.text("tick", left, bottom + 18, f"{history.records[0].started_at:%Y-%m-%d}")
    drawing.text("tick", right, bottom + 18, f"{history.latest.started_at:%Y-%m-%d}", "end")
    return drawing.to_svg()


@dataclass(frozen=True)
class _Span:
    """An attempt at a step, in seconds from the outage's start; `end` is only where it is last known of, if open."""

    step: StepResult
    start: float
    end: float
    open: bool


def _spans(record: Record, start: datetime) -> list[_Span]:
    spans = []
    for number, step in enumerate(record.steps):
        begun = (step.started_at - start).total_seconds()
        if step.ended_at is not None:
            spans.append(_Span(step, begun, (step.ended_at - start).total_seconds(), open=False))
            continue
        # Nobody saw its end: it is drawn up to what came next.
        following = record.steps[number + 1].started_at if number + 1 < len(record.steps) else record.ended_at
        spans.append(_Span(step, begun, (following - start).total_seconds(), open=True))
    return spans


def _phase_band(drawing: Drawing, record: Record, scale: Scale, top: float) -> None:
    drawing.text("label", _LEFT - 12, top + _BAR, "phases", "end")
    reached = 0.0
    for phase, seconds in phases_of(record):
        if seconds is None:
            break
        x, width = scale.x(reached), scale.x(reached + seconds) - scale.x(reached)
        told = f"{phase} {seconds_text(seconds)}"
        drawing.rect(f"phase {phase}", x, top, width, 20, told, radius=0)
        if width > 7 * len(told):
            drawing.text("within", x + width / 2, top + 14, told, "middle")
        reached += seconds


def _lane(drawing: Drawing, spans: Sequence[_Span], scale: Scale, y: float) -> None:
    for span in spans:
        x, width = scale.x(span.start), max(scale.x(span.end) - scale.x(span.start), _THIN)
        if span.open:
            drawing.hatched(x, y + 3, width, _BAR, f"{_step_title(span.step)}: {span.step.detail}")
        else:
            drawing.rect(_bar(span.step), x, y + 3, width, _BAR, f"{_step_title(span.step)}: {_took(span.step)}")
            budget = span.step.budget_seconds
            if budget is not None and budget <= scale.end * _NEAR:
                limit = scale.x(span.start + budget)
                drawing.rect("budget", x, y, limit - x, _BAR + 6, f"budget {seconds_text(budget)}")
                drawing.line("limit", limit, y, limit, y + _BAR + 6)
    told = " · ".join(_brief(span.step) for span in spans)
    drawing.text("figure", scale.right + 12, y + _BAR, told)


def _promise(drawing: Drawing, scale: Scale, promised: float, near: bool, top: float, bottom: float) -> None:
    told = f"promised {seconds_text(promised)}"
    if near:
        drawing.line("promise", scale.x(promised), top - 8, scale.x(promised), bottom)
    drawing.text("promised", scale.right + 12, top + _BAR, told if near else f"→ {told}, off this scale")


def _since(start: datetime, moment: datetime | None) -> float | None:
    return (moment - start).total_seconds() if moment is not None else None


def _bar(step: StepResult) -> str:
    return "bar over" if step.overrun else "bar failed" if step.outcome == "failed" else "bar"


def _step_title(step: StepResult) -> str:
    return words(step.name) + (f" ({step.attempt})" if step.attempt > 1 else "")


def _brief(step: StepResult) -> str:
    if step.outcome == "done":
        return seconds_text(step.seconds)
    return step.outcome if step.seconds is None else f"{step.outcome}, {seconds_text(step.seconds)}"


def _took(step: StepResult) -> str:
    if step.seconds is None:
        return f"{step.outcome}, no known end"
    if not step.budget_seconds:
        return f"{_brief(step)}, no budget"
    share = share_text(step.seconds, step.budget_seconds)
    told = f"{_brief(step)} of {seconds_text(step.budget_seconds)} · {share}"
    return f"over: {told}" if step.overrun else told


def _timeline_words(record: Record, spans: Sequence[_Span]) -> str:
    phases = ", ".join(f"{name} {seconds_text(value)}" for name, value in phases_of(record))
    steps = "; ".join(f"{_step_title(s.step)} from {seconds_text(s.start)}: {_brief(s.step)}" for s in spans)
    return f"From the outage's start. Phases: {phases}. Steps: {steps or 'none'}."


def _budget_words(steps: Sequence[StepResult]) -> str:
    return "; ".join(f"{_step_title(step)}: {_took(step)}" for step in steps) or "No steps."


def _history_words(history: History, objective: str, values: Sequence[float | None]) -> str:
    told = (f"{r.started_at:%Y-%m-%d}: {seconds_text(v)}" for r, v in zip(history.records, values, strict=True))
    return f"{objective} of each {history.kind.replace('_', ' ')}, oldest first. {'; '.join(told)}."
