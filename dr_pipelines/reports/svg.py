"""Just enough of SVG for the report's charts: shapes that name their class, text that is escaped, axes of time.

Colours come from the page's style sheet by class, so that a chart follows the light, the dark and the printed page.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from markupsafe import Markup, escape

from dr_pipelines.reports.text import printable
from dr_pipelines.timing import format_duration

__all__ = ["Drawing", "Scale", "duration_ticks"]

_STEPS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800),
)


@dataclass(frozen=True)
class Scale:
    """Seconds from 0 to `end` along the x axis from `left` over `width`."""

    end: float
    left: float
    width: float

    def x(self, seconds: float) -> float:
        """Where that many seconds are; beyond the axis, its nearer end."""
        return self.left + self.width * min(max(seconds / self.end, 0.0), 1.0)

    @property
    def right(self) -> float:
        """Where the axis ends."""
        return self.left + self.width


def duration_ticks(end: float, at_most: int = 7) -> list[float]:
    """Round durations from 0 up to `end` seconds."""
    step = next((step for step in _STEPS if end / step <= at_most), None)
    if step is None:
        step = 604800.0 * max(1, round(end / 604800 / at_most))
    return [number * step for number in range(int(end / step * (1 + 1e-9)) + 1)]


@dataclass
class Drawing:
    """An SVG picture in the making; `name` makes the ids in it its own."""

    name: str
    title: str
    description: str
    width: float
    height: float = 0.0
    _shapes: list[Markup] = field(default_factory=list)

    def rect(self, css: str, x: float, y: float, width: float, height: float, tip: str = "", radius: float = 2) -> None:
        """A box, with what it says when pointed at."""
        shape = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="{}">{}</rect>')
        self._shapes.append(shape.format(css, x, y, max(width, 0), height, radius, _tip(tip)))

    def line(self, css: str, x1: float, y1: float, x2: float, y2: float) -> None:
        """A straight line."""
        shape = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
        self._shapes.append(shape.format(css, x1, y1, x2, y2))

    def path(self, css: str, points: Sequence[tuple[float, float]], *, closed: bool = False, tip: str = "") -> None:
        """A line through points, or the shape that they enclose."""
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        shape = Markup('<path class="{}" d="M{}{}">{}</path>')
        self._shapes.append(shape.format(css, way, "Z" if closed else "", _tip(tip)))

    def circle(self, css: str, x: float, y: float, radius: float, tip: str = "") -> None:
        """A dot."""
        shape = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}">{}</circle>')
        self._shapes.append(shape.format(css, x, y, radius, _tip(tip)))

    def text(self, css: str, x: float, y: float, words: str, anchor: str = "start") -> None:
        """Words that begin, are centred or end at x."""
        shape = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
        self._shapes.append(shape.format(css, x, y, anchor, printable(words)))

    def time_axis(self, scale: Scale, top: float, bottom: float) -> None:
        """Grid lines at round durations, each named below."""
        for seconds in duration_ticks(scale.end):
            self.line("grid", scale.x(seconds), top, scale.x(seconds), bottom)
            name = "0" if seconds == 0 else format_duration(timedelta(seconds=seconds))
            self.text("tick", scale.x(seconds), bottom + 14, name, "middle")

    def to_svg(self) -> Markup:
        """The picture, to be put into a page."""
        hatch = Markup(
            '<defs><pattern id="{0}-hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><rect class="hatch-ground" width="6" height="6"/>'
            '<line class="hatch-line" x1="0" y1="0" x2="0" y2="6"/></pattern></defs>'
        ).format(self.name)
        head = Markup(
            '<svg class="chart" role="img" viewBox="0 0 {w:.0f} {h:.0f}" width="{w:.0f}" height="{h:.0f}" '
            'aria-labelledby="{n}-title {n}-desc"><title id="{n}-title">{t}</title><desc id="{n}-desc">{d}</desc>'
        ).format(w=self.width, h=self.height, n=self.name, t=printable(self.title), d=printable(self.description))
        return head + hatch + Markup("").join(self._shapes) + Markup("</svg>")

    def hatched(self, x: float, y: float, width: float, height: float, tip: str) -> None:
        """A box of slanted lines: something that has no known end."""
        shape = Markup(
            '<rect class="hatched" fill="url(#{}-hatch)" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>'
        )
        self._shapes.append(shape.format(self.name, x, y, width, height, _tip(tip)))


def _tip(words: str) -> Markup:
    return Markup("<title>{}</title>").format(printable(words)) if words else escape("")
