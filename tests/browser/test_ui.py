"""What an operator does and sees in Dagster's UI: a drill launched from its form, its figures, a wrong form refused."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from assets.drill import DrillForm
from assets.restore import RestoreForm
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.reports.text import seconds_text
from dr_pipelines.runbooks.record import Record
from tests.browser.conftest import PHOTOGRAPHING, RUN_MS, Ui, new_context, photograph

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STEPS = ["assess", "prepare", "restore_latest_backup", "apply_wal", "validate"]
OPS = [*STEPS, "cutover"]
FIGURES = [
    "database_rpo_objective_seconds",
    "database_rpo_seconds",
    "database_rto_objective_seconds",
    "database_rto_seconds",
]

LINES_ARE_DRAWN = """
() => [...document.querySelectorAll("canvas")].every((canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let coloured = 0;
  for (let i = 0; i < data.length; i += 4) {
    const [red, green, blue, opaque] = data.slice(i, i + 4);
    if (opaque > 200 && Math.max(red, green, blue) - Math.min(red, green, blue) > 100) coloured++;
  }
  return coloured > 200;
})"""
"""Axes and letters are grey: what has a colour is the line between at least two points."""


@dataclass(frozen=True)
class Drill:
    """A drill that was launched in the browser and has ended."""

    run_id: str
    record: Record


def fill_in(page: Page, ui: Ui, job: str, step: str, fields: Mapping[str, object]) -> None:
    """Open a job's form and type in what is not to be as it is."""
    page.goto(ui.launchpad(job))
    editor = page.locator(".CodeMirror").first
    # What the form begins with comes late, and would replace what is typed before.
    expect(editor).to_contain_text(f"{step}:")
    editor.click()
    page.keyboard.press("Control+A")
    lines = "".join(f"      {name}: {value}\n" for name, value in fields.items())
    page.keyboard.insert_text(f"ops:\n  {step}:\n    config:\n{lines}")
    # Back among the fields: the panel beside the editor explains those where the cursor is.
    page.keyboard.press("ArrowUp")
    page.keyboard.press("End")


def explained(page: Page, form: type[dg.Config], field: str) -> Locator:
    """What the panel beside the editor says of a field."""
    text = form.model_fields[field].description
    assert text is not None
    return page.get_by_text(re.compile(r"\s+".join(map(re.escape, text.split())))).last


def launch(page: Page) -> str:
    """Launch what is filled in; returns the run's id, on whose page this ends."""
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url("**/runs/*")
    return page.url.rpartition("/")[2]


def ended(page: Page) -> str:
    """How the run on whose page we are ended."""
    outcome = page.get_by_text(re.compile("^(Success|Failure|Canceled)$")).first
    expect(outcome).to_be_visible(timeout=RUN_MS)
    return outcome.inner_text()


def launch_drill(page: Page, ui: Ui) -> Drill:
    size = 50_000_000 if PHOTOGRAPHING else 2_000_000
    fill_in(page, ui, "database_drill", "set_the_stage", {"size_bytes": size, "reason": "quarterly drill"})
    size_explained = explained(page, DrillForm, "size_bytes")
    size_explained.scroll_into_view_if_needed()
    expect(page.get_by_role("button", name="Launch Run")).to_be_enabled()
    photograph(page, "drill-launch.png", size_explained, page.get_by_text("No errors"))
    run_id = launch(page)
    assert ended(page) == "Success", page.locator("body").inner_text()
    return Drill(run_id, ui.record_of(run_id))


@pytest.fixture(scope="module")
def drilled(browser: Browser, ui: Ui) -> Drill:
    """One drill, launched from its form."""
    with new_context(browser) as context:
        return launch_drill(context.new_page(), ui)


def test_a_drill_launched_from_its_form_leaves_a_record_with_its_verdict(drilled: Drill) -> None:
    record = drilled.record
    assert (record.kind, record.run_ids, record.verdict) == ("drill", (drilled.run_id,), Verdict.MET), record.deviations
    assert record.reason == "quarterly drill"


def test_its_run_page_shows_the_five_steps_in_order_with_their_budgets(page: Page, ui: Ui, drilled: Drill) -> None:
    page.goto(ui.url(f"runs/{drilled.run_id}"))
    assert ended(page) == "Success"
    for title in ("Preparing (0)", "Executing (0)", "Errored (0)", "Succeeded (9)"):
        page.get_by_text(title).click()
    drawn = page.locator(".chart-element[data-tooltip^='runbook.']")
    expect(drawn).to_have_count(len(OPS))
    lefts = {element.get_attribute("data-tooltip"): left_of(element) for element in drawn.all()}
    assert sorted(lefts, key=lambda name: lefts[name]) == [f"runbook.{step}" for step in OPS]

    log_filter = page.get_by_placeholder("Filter…")
    log_filter.fill("done after")
    log_filter.blur()
    told = page.get_by_text(re.compile("^step .*: done after "))
    expect(told).to_have_count(len(STEPS) + 5)
    budgets = ["5m", "10m", "20m", "15m", "10m"]
    for line, step, budget in zip(told.all_inner_texts(), STEPS, budgets, strict=False):
        assert re.match(rf"step {step}: done after \S+ of {budget}, ", line), line
    make_room(page, 185)
    photograph(page, "drill-run.png", *(page.get_by_text(f"runbook.{step}").last for step in STEPS))


def left_of(element: Locator) -> float:
    box = element.bounding_box()
    assert box is not None
    return box["x"]


def make_room(page: Page, pixels: int) -> None:
    """Draw the divider between the steps and the log down."""
    divider = page.locator("[class*=verticalHitArea]")
    box = divider.bounding_box()
    assert box is not None
    x, y = box["x"] + 300, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + pixels, steps=5)
    page.mouse.up()


def test_the_adherence_asset_shows_promises_and_figures_and_plots_them(page: Page, ui: Ui, drilled: Drill) -> None:
    record = launch_drill(page, ui).record
    page.goto(ui.url("assets/rto_rpo_adherence"))
    assert record.rto_seconds is not None and record.rpo_seconds is not None
    told = f"database {seconds_text(record.rto_seconds)} / 1h {seconds_text(record.rpo_seconds)} / 15m met"
    expect(page.get_by_role("row", name=told, exact=True)).to_be_visible()
    expect(page.get_by_role("row", name=re.compile(f"^database_rto_seconds .* {record.rto_seconds}$"))).to_be_visible()
    expect(page.get_by_role("link", name=record.run_ids[-1])).to_be_visible()

    for section in ("Status", "Description"):
        page.get_by_text(section, exact=True).click()
    page.get_by_role("button", name="Plots").click()
    for name in FIGURES:
        expect(page.get_by_text(name, exact=True)).to_be_visible()
    plots = page.locator("canvas")
    expect(plots).to_have_count(len(FIGURES))
    page.wait_for_function(LINES_ARE_DRAWN)
    photograph(page, "adherence-asset.png", *plots.all())


def test_the_checks_of_the_recovery_say_what_was_measured(page: Page, ui: Ui, drilled: Drill) -> None:
    page.goto(ui.url("assets/database_recovery?view=checks&checkDetail=rto_met"))
    expect(page.get_by_text("Succeeded", exact=True)).to_have_count(3)
    expect(page.get_by_text(re.compile(r"^met: .*s, promised 1h; wall clock"))).to_be_visible()


def test_what_is_stopped_in_the_ui_is_told_on_the_adherence_asset(page: Page, ui: Ui) -> None:
    schedule = ui.url("locations/dr/schedules/database_backup_schedule")
    switch = page.locator("label[class*=formatSwitch]")
    page.goto(schedule)
    switch.click()
    expect(switch.get_by_role("checkbox")).not_to_be_checked()
    try:
        page.goto(ui.url("assets/rto_rpo_adherence"))
        page.get_by_role("button", name="Materialize").click()
        told = page.get_by_role("row", name=re.compile("^off .* the schedule database_backup_schedule is stopped$"))
        expect(told).to_be_visible(timeout=RUN_MS)
    finally:
        page.goto(schedule)
        switch.click()
        expect(switch.get_by_role("checkbox")).to_be_checked()


def test_the_report_is_one_page_that_needs_nothing_else(page: Page, ui: Ui, drilled: Drill) -> None:
    file = ui.dr.folder / "adherence.html"
    ui.dr("report", "adherence", "--html", file)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    expect(page.get_by_text(drilled.record.record_id).first).to_be_attached()
    assert asked == [file.as_uri()]
    page.set_viewport_size({"width": 1400, "height": 1060})
    page.get_by_role("link", name="Database").click()
    drawn = [page.get_by_role("heading", name=name) for name in ("How it went", "Steps beside their budgets")]
    photograph(page, "adherence-page.png", *drawn)


def test_the_form_of_a_restore_explains_each_field(page: Page, ui: Ui) -> None:
    fill_in(page, ui, "database_restore", "assess", {"service": "database"})
    for field in RestoreForm.model_fields:
        expect(explained(page, RestoreForm, field)).to_be_attached()
    expect(page.get_by_text(re.compile("Missing required config entries"))).to_contain_text("outage_started_at")
    expect(page.get_by_role("button", name="Launch Run")).to_be_disabled()


def test_a_restore_of_an_outage_that_is_yet_to_come_is_refused_on_its_run_page(page: Page, ui: Ui) -> None:
    fields = {"service": "database", "outage_started_at": "2999-01-01T00:00:00Z", "reason": "the database is gone"}
    fill_in(page, ui, "database_restore", "assess", fields)
    launch(page)
    assert ended(page) == "Failure"
    page.get_by_placeholder("Filter…").fill("type:STEP_FAILURE")
    expect(page.get_by_text("outage_started_at: 2999-01-01T00:00:00.000000Z is yet to come").first).to_be_visible()
