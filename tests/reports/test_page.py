"""The page: self-contained, whole for somebody who sees neither colours nor pictures, and proof against its content."""

import re
from collections.abc import Callable
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dr_pipelines.plan import Plan, parse_plan
from dr_pipelines.reports.adherence import adherence
from dr_pipelines.reports.page import adherence_page
from dr_pipelines.runbooks.record import Record
from tests.reports.conftest import CUTOVER, PHASES, make_estimate

MakeRecord = Callable[..., Record]
UNCLOSED = {"meta"}
HOSTILE = (
    "</title></script><script>document.title = 'taken'</script>\"'><img src=x onerror=alert(1)> "
    "\x1b[31m\x00\u202e\ud800 &amp;"
)


class Page(HTMLParser):
    """A page taken apart: its text, its elements, and whether each that is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in UNCLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        """What is to be read, its blanks made one."""
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each element of that name."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page_of(plan: Plan, now: datetime) -> Callable[..., Page]:
    """Makes the page of some records."""

    def make(*records: Record, plan: Plan = plan, off: tuple[str, ...] = ()) -> Page:
        return Page(adherence_page(adherence(plan, records, now=now, off=off)))

    return make


MakePage = Callable[..., Page]


def test_without_a_record_each_service_says_so(page_of: MakePage) -> None:
    page = page_of()

    assert "Of 2 protected services, 0 met every objective, 2 were never drilled. 1 is unprotected" in page.text
    assert page.text.count("not measured") == 6
    assert "Unprotected, by decision. it is made anew from the checkout" in page.text
    assert page.all("svg") == []


def test_a_drill_that_met_everything_is_told_in_words_and_figures(page_of: MakePage, make_record: MakeRecord) -> None:
    page = page_of(make_record())

    assert "Of 2 protected services, 1 met every objective, 1 was never drilled." in page.text
    assert "the service was back after 20.4s; 1h is promised." in page.text
    assert "Data of the last 0.9s before it were lost; 10m is allowed." in page.text
    assert "1,412 rows acknowledged, 1,391 recovered, 21 lost" in page.text
    assert "decide 1.3s 6.4 %" in page.text
    assert "6.1s of 20m · 0.5 %" in page.text


def test_the_evidence_leads_to_record_run_and_method(page_of: MakePage, make_record: MakeRecord) -> None:
    record = make_record()
    page = page_of(record)

    assert record.backup is not None
    for told in (
        "records/2026/03/20260301T120000Z-drill-9f86d0.json in s3://backups/hotel",
        record.execution_id,
        record.run_ids[0],
        record.rto_method,
        record.rpo_method,
        record.scenario,
        record.environment.isolation,
        record.environment.clock,
        record.backup.backup_id,
        record.backup.manifest_sha256,
        str(record.plan_sha256),
        *record.success_criteria,
        *(check.name for check in record.checks),
    ):
        assert told in page.text


def test_an_estimate_is_called_one(page_of: MakePage, make_record: MakeRecord) -> None:
    text = page_of(make_record(estimate=make_estimate())).text
    assert "Estimated20s (12s to 33s)" in text
    assert "Estimated" not in page_of(make_record()).text


def test_verdicts_are_words_not_colours_alone(page_of: MakePage, make_record: MakeRecord) -> None:
    checks = [{"name": "rows", "passed": False, "detail": "row 7"}, {"name": "log", "passed": None, "detail": "?"}]

    page = page_of(make_record(rto_seconds=4000.0, rpo_seconds=None, checks=checks, rpo_method="not measured: why"))

    assert "promised 1h ✗ missed" in page.text
    assert "promised 10m ? unverified" in page.text
    assert "rows failed row 7" in page.text
    assert "log could not be made ?" in page.text
    assert "The loss of data was not measured: why" in page.text


def test_overruns_and_interruptions_are_words_too(page_of: MakePage, make_record: MakeRecord) -> None:
    steps = [step.model_dump(mode="json") for step in make_record().steps]
    steps[0] |= {"seconds": 330.0, "overrun": True}
    steps[3] |= {"outcome": "interrupted", "seconds": None, "ended_at": None, "detail": "its run ended before it did"}
    steps.insert(4, {**steps[2], "name": "apply_wal", "attempt": 2, "run_id": "resumed1-8a51"})

    page = page_of(make_record(attempt=2, steps=steps, run_ids=["6f1c9c1e-8a51", "resumed1-8a51"]))

    assert "over: 5m30s of 5m · 110 %" in page.text
    assert "done over budget" in page.text
    assert "interrupted, no known end" in page.text
    assert "apply wal (attempt 2)" in page.text
    assert "6f1c9c1e-8a51, resumed1-8a51" in page.text
    assert "attempt 2, resumed" in page.text


def test_what_is_off_and_what_changed_is_at_the_top(page_of: MakePage, make_record: MakeRecord, plan_text: str) -> None:
    page = page_of(make_record(), plan=parse_plan(plan_text + "# changed\n"), off=("a sensor is stopped",))

    top = page.text[: page.text.index("Overview")]
    assert "a sensor is stopped" in top
    assert "Database: the plan changed since the drill of 2026-03-01 11:59:20 UTC" in top


def test_a_real_restore_stands_beside_the_drill_and_is_not_mixed_with_it(
    page_of: MakePage, make_record: MakeRecord
) -> None:
    page = page_of(make_record(), make_record(1, kind="restore", rto_seconds=900.0))

    assert "Latest drill, 2026-03-01" in page.text
    assert "In a real restore of 2026-03-02 12:00:00 UTC the service was back after 15m" in page.text
    assert "so far" not in page.text


@pytest.mark.parametrize(("number", "claimed"), [(2, False), (4, False), (5, True)])
def test_history_is_plotted_and_no_trend_is_claimed_on_fewer_than_five(
    page_of: MakePage, make_record: MakeRecord, number: int, claimed: bool
) -> None:
    page = page_of(*(make_record(day) for day in range(number)))

    assert f"RTO: n = {number}, median 20.4s, 90th percentile 20.4s" in page.text
    assert ("no trend is claimed" not in page.text) is claimed
    assert sum("dot" in (circle["class"] or "") for circle in page.all("circle")) == 2 * number


def test_a_figure_that_was_not_measured_is_never_plotted_as_met(
    plan: Plan, now: datetime, make_record: MakeRecord
) -> None:
    verdicts = {"rto": "met", "rpo": "unverified", "integrity": "met"}
    records = [make_record(0), make_record(1, rpo_seconds=None, verdicts=verdicts)]

    html = adherence_page(adherence(plan, records, now=now, off=()))

    assert re.findall(r'class="unmeasured"[^>]*>(.)<', html) == ["?"]


def test_pictures_are_told_in_words_and_their_ids_are_their_own(page_of: MakePage, make_record: MakeRecord) -> None:
    page = page_of(*(make_record(day) for day in range(3)), make_record(1, kind="restore"))

    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for picture in page.all("svg"):
        assert picture["role"] == "img"
        named = (picture["aria-labelledby"] or "").split()
        assert len(named) == 2
        assert set(named) <= set(ids)
    assert all(heading.get("scope") for heading in page.all("th"))


def test_bars_stay_within_the_picture_whatever_the_figures(page_of: MakePage, make_record: MakeRecord) -> None:
    steps = [step.model_dump(mode="json") for step in make_record().steps]
    steps[0] |= {"seconds": 0.0, "budget_seconds": None}
    steps[1] |= {"seconds": 1e7, "overrun": True}

    page = page_of(make_record(steps=steps, rto_seconds=1e7))

    for bar in page.all("rect"):
        if "x" in bar:
            left = float(bar["x"] or 0)
            assert 0 <= left <= left + float(bar["width"] or 0) <= 960


def test_a_promise_of_no_loss_at_all_is_shown(page_of: MakePage, make_record: MakeRecord, plan_text: str) -> None:
    plan = parse_plan(plan_text.replace("engine: redis", "engine: redis\n    rpo: 0s"))
    records = (make_record(day, service="redis", rpo_seconds=day - 1.0, steps=[]) for day in (1, 2))

    page = page_of(*records, plan=plan)

    assert "promised 0s ✗ missed" in page.text
    assert "Data of the last 1s before it were lost; 0s is allowed." in page.text


def test_nothing_is_fetched_from_anywhere(page_of: MakePage, make_record: MakeRecord) -> None:
    page = page_of(make_record())

    assert {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "use", "image"} == set()
    for tag, attributes in page.elements:
        assert attributes.keys() & {"src", "srcset", "action", "xlink:href"} == set()
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert not any(name.startswith("on") for name in attributes)


def hostile_records(make_record: MakeRecord) -> list[Record]:
    """Records whose every free text is an attack."""
    steps: list[dict[str, Any]] = [step.model_dump(mode="json") for step in make_record().steps]
    steps[1] |= {"name": HOSTILE, "detail": HOSTILE, "run_id": HOSTILE}
    environment = make_record().environment.model_dump() | {"host": HOSTILE, "repository": HOSTILE}
    spoilt = {
        "reason": HOSTILE,
        "requested_by": HOSTILE,
        "scenario": HOSTILE,
        "execution_id": HOSTILE,
        "rto_method": HOSTILE,
        "deviations": [HOSTILE],
        "success_criteria": [HOSTILE],
        "checks": [{"name": HOSTILE, "passed": False, "detail": HOSTILE}],
        "run_ids": [HOSTILE],
        "steps": steps,
        "environment": environment,
    }
    return [
        make_record(1),
        make_record(2, **spoilt),
        make_record(3, rto_seconds=None, **(spoilt | {"execution_id": "x"})),
    ]


def test_hostile_words_are_shown_and_do_nothing(page_of: MakePage, make_record: MakeRecord) -> None:
    page = page_of(*hostile_records(make_record), off=(HOSTILE,))

    assert page.all("script") == []
    assert page.all("img") == []
    assert "<script>document.title = 'taken'</script>" in page.text
    assert not set(page.text) & {"\x1b", "\x00", "\u202e", "\ud800"}
    page.text.encode()


@pytest.mark.browser
def test_in_a_browser_it_needs_nothing_else_and_fits_a_telephone(
    plan: Plan, make_record: MakeRecord, now: datetime, tmp_path: Path
) -> None:
    from playwright.sync_api import sync_playwright

    report = adherence(plan, hostile_records(make_record), now=now, off=(HOSTILE,))
    (tmp_path / "page.html").write_text(adherence_page(report), encoding="utf-8")
    asked: list[str] = []
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"file://{tmp_path}/page.html")
        title = page.title()
        width = page.evaluate("document.documentElement.scrollWidth")
        browser.close()

    assert asked == [f"file://{tmp_path}/page.html"]
    assert said == []
    assert title == "Recovery: promised and measured, 2026-03-31"
    assert width == 390


def test_a_cutover_is_among_the_facts_and_the_phases(plan: Plan, now: datetime, make_record: MakeRecord) -> None:
    phases = {**PHASES, "healthy": 0.3}
    page = adherence_page(adherence(plan, [make_record(cutover=CUTOVER, phases=phases)], now=now, off=()))

    assert "<dt>Cutover</dt><dd>from 10.0.0.5:5432 to 10.0.0.7:5432</dd>" in page
    assert 'class="phase approval"' in page and 'class="phase cutover"' in page
