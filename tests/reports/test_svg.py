"""Axes of time have round figures, and what is drawn stays on them."""

import pytest

from dr_pipelines.reports.svg import Drawing, Scale, duration_ticks


@pytest.mark.parametrize(
    ("end", "ticks"),
    [
        (20.4, [0, 5, 10, 15, 20]),
        (0.02, [0, 0.005, 0.01, 0.015, 0.02]),
        (3600, [0, 600, 1200, 1800, 2400, 3000, 3600]),
        (90000, [0, 21600, 43200, 64800, 86400]),
        (604800 * 100, [0, *(604800 * weeks for weeks in range(14, 99, 14))]),
    ],
)
def test_ticks_are_round_durations(end: float, ticks: list[float]) -> None:
    assert duration_ticks(end) == pytest.approx(ticks)


@pytest.mark.parametrize("end", [0.001, 0.3, 7, 59, 61, 3599, 86401, 1e7, 1e9])
def test_there_are_enough_ticks_and_not_too_many(end: float) -> None:
    assert 2 <= len(duration_ticks(end)) <= 9


def test_what_lies_beyond_an_axis_is_drawn_at_its_end() -> None:
    scale = Scale(10, left=100, width=50)

    assert [scale.x(seconds) for seconds in (-1, 0, 5, 10, 11)] == [100, 100, 125, 150, 150]


def test_words_in_a_picture_are_escaped() -> None:
    drawing = Drawing("x", "<title>", 'a "description"', 10, 10)
    drawing.text("label", 0, 0, "</text><script>")
    drawing.rect("bar", 0, 0, 1, 1, "<tip>")

    svg = drawing.to_svg()

    assert "<script>" not in svg
    assert "&lt;tip&gt;" in svg
    assert "&lt;title&gt;" in svg
