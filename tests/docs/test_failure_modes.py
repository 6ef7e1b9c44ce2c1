"""The page of what can fail: no fault of the list without its row, no row without a test that is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "failure-modes.md"

FAULTS = [
    *(f"{place}: disk full" for place in ("repository", "target", "spool", "pg_wal")),
    *(f"{place}: read-only" for place in ("repository", "target", "spool", "pg_wal")),
    *(f"S3: {what}" for what in ("503", "throttling", "reset in mid-upload", "slow", "wrong clock")),
    *(f"S3: {what}" for what in ("expired credentials", "bucket gone")),
    *(f"server: {what}" for what in ("stopped", "restarted", "promoted", "crashed during backup")),
    *(f"agent: {what}" for what in ("stopped for a while", "killed", "two at once")),
    "manifest: flipped, truncated, absent",
    *(f"{kind}: flipped" for kind in ("dr-repository.json", "part", "tombstone", "segment or chunk", "history")),
    *(f"{kind}: flipped" for kind in ("backup note, partial segment", "position", "lock", "record")),
    *(f"{kind}: flipped" for kind in ("execution, event", "plan, its pointer")),
    *(f"WAL segment: {what}" for what in ("missing", "duplicated with other content", "from another system identifier")),
    "two backups at once",
    *(f"clock: set {way}" for way in ("back", "forward")),
    *(f"hostile: {what}" for what in ("path traversal", "symlinks", "absurd sizes", "decompression bombs")),
    "hostile: names with shell characters",
    *(f"SIGKILL: {when}" for when in ("before the first part", "between parts")),
    *(f"SIGKILL: {when}" for when in ("between the last part and the manifest", "during retention")),
    *(f"SIGKILL: {when}" for when in ("before and after a segment's put", "before its removal from the spool")),
    *(f"SIGKILL: {when}" for when in ("during parts", "before recovery", "during replay", "before validation")),
    "SIGKILL: during cutover",
]


def rows() -> dict[str, list[str]]:
    found = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in found]
    return {row[0]: row[1:] for row in cells if row[0] != "fault"}


@cache
def names_in(path: Path) -> frozenset[str]:
    """The tests of a file, those of classes with the class's name before them."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return frozenset(names)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_row(fault: str) -> None:
    assert [name for name in rows() if name.startswith(fault)]


@pytest.mark.parametrize("name", rows())
def test_each_row_says_everything_and_names_tests_that_are_there(name: str) -> None:
    cells = rows()[name]
    assert len(cells) == 4
    assert all(cells)
    named = re.findall(r"`([\w/]+\.py)::([\w:]+)`", cells[3])
    assert named
    for file, test in named:
        path = ROOT / "tests" / file
        assert path.exists(), file
        assert test in names_in(path), test
