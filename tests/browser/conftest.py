"""A `dr ui` that really runs, a browser to look at it with, and photographs of what is seen.

Photographs are written to docs/images/ only where DR_PHOTOGRAPH is set (`make images`), so that a test run leaves the
checkout as it is.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.reports.reading import read_records
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.runbooks.record import Record
from dr_pipelines.settings import Settings
from tests.cli.conftest import PLAN, ROOT, Dr
from tests.conftest import SOFTWARE

PHOTOGRAPHING = bool(os.environ.get("DR_PHOTOGRAPH"))
PATIENCE_MS = 30_000
"""For what the UI shows."""
RUN_MS = 120_000
"""For the end of a run."""
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class Ui:
    """A UI that runs, with the lab's database behind it and a repository in a folder."""

    address: str
    repository: str
    dr: Dr
    """The command, configured as the UI is."""

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def launchpad(self, job: str) -> str:
        return self.url(f"locations/__repository__@dr/jobs/{job}/playground")

    def record_of(self, run_id: str) -> Record:
        """The record that a run has left in the repository."""
        settings = Settings(repository=self.repository)
        (record,) = [
            record
            for record in read_records(open_repository(self.repository, settings=settings))
            if run_id in record.run_ids
        ]
        return record


@pytest.fixture(scope="module")
def ui() -> Iterator[Ui]:
    """Nothing of what it made is left afterwards."""
    folder = _folder()
    environment = {"DR_STATE_DIR": str(folder), "DR_PLAN": str(PLAN), "DR_LAB_REPOSITORY": "folder"}
    dr = Dr(environment, folder)
    running = dr.start("ui", "--json", "--port", str(free_port()))
    try:
        told = _told(running)
        configured = Dr({**environment, "DR_REPOSITORY": told["repository"]}, folder)
        yield Ui(told["address"], told["repository"], configured)
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.communicate(timeout=60)
        finally:
            running.kill()
            leases = Leases(folder)
            for lease in leases.all(ending=True):
                leases.kill(lease)
            shutil.rmtree(folder)


def _folder() -> Path:
    """Where the state lies; a photograph shows it, so there it has a name that says something."""
    if PHOTOGRAPHING:
        folder = Path("/tmp/dr-demo")
        folder.mkdir()
    else:
        folder = Path(tempfile.mkdtemp(prefix="dr-test-", dir="/tmp"))
    folder.chmod(0o755)
    return folder


def _told(running: "subprocess.Popen[str]") -> dict[str, str]:
    """What the command printed when the UI answered."""
    assert running.stdout is not None
    text = ""
    for line in running.stdout:
        text += line
        if line.startswith("}"):
            found: dict[str, str] = json.loads(text)
            assert "address" in found, text
            return found
    raise AssertionError(running.communicate()[1])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=SOFTWARE["chromium"], args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a browser that has seen nothing before."""
    with new_context(browser) as context:
        yield context.new_page()


def new_context(browser: Browser) -> BrowserContext:
    context = browser.new_context(viewport={"width": 1400, "height": 900}, timezone_id="UTC", locale="en-US")
    context.set_default_timeout(PATIENCE_MS)
    return context


def photograph(page: Page, name: str, *shown: Locator) -> None:
    """Photograph the page as docs/images/`name`, where photographs are wanted, once all that is to be `shown` is."""
    for part in shown:
        expect(part).to_be_in_viewport()
    if PHOTOGRAPHING:
        folder = ROOT / "docs" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / name, animations="disabled", caret="hide")
