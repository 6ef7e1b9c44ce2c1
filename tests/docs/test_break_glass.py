"""docs/break-glass.md, carried out as it is written: the wheel, PostgreSQL and the repository, and nothing else."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest
from hatchling.builders.wheel import WheelBuilder

from dr_pipelines import __version__
from dr_pipelines.processes.postgres import find_binaries
from tests.cli.conftest import ROOT, Hotel, hotel

__all__ = ["hotel"]

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "break-glass.md").read_text()
LIST_TABLES = """
SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE' ORDER BY 1
"""


def commands(values: dict[str, str]) -> list[str]:
    """The page's commands, block by block, where what the reader fills in is `values`."""
    first, *others = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names = re.findall(r"^(?:export )?([A-Z_]+)=", first, re.MULTILINE)
    assert set(names) == set(values), "what the page asks for and what the test fills in"
    return ["".join(f"export {name}='{values[name]}'\n" for name in names), *others]


def rows_of(dsn: str) -> dict[str, list[str]]:
    """Every row of every table."""
    with psycopg.connect(dsn) as connection:
        tables = [name for (name,) in connection.execute(LIST_TABLES).fetchall()]
        found = {}
        for table in tables:
            query = psycopg.sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1").format(psycopg.sql.Identifier(table))
            found[table] = [str(row) for (row,) in connection.execute(query).fetchall()]
    return found


def test_the_page_brings_every_row_back_from_the_repository_alone(hotel: Hotel, world_readable_folder: Path) -> None:
    folder = world_readable_folder
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    expected = rows_of(hotel.lab.dsn())
    shutil.copytree(hotel.repository, folder / "repository")
    target = folder / "restored" / "data"
    *before, stopping = commands(
        {
            "DR_REPOSITORY": str(folder / "repository"),
            "DR_POSTGRES_BIN": str(find_binaries(hotel.settings, hotel.lab.major).folder),
            "WHEEL": wheel,
            "TOOLS": str(folder / "tools"),
            "TARGET": str(target),
            "OUTAGE": "2026-03-01T12:00:00Z",
        }
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DR_", "PG", "PYTHON"))}
    environment = {**kept, "DR_STATE_DIR": str(folder / "state"), "HOME": str(folder)}

    def carry_out(*blocks: str) -> str:
        script = "set -euo pipefail\n" + "".join(blocks)
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = carry_out(*before)
    without = ["import importlib.util, sys", "sys.exit(importlib.util.find_spec('dagster') is not None)"]
    carry_out(f'"{folder}/tools/bin/python" -c "{"; ".join(without)}"\n')
    try:
        _, _, _, port, socket, *_ = (target / "postmaster.pid").read_text().splitlines()
        restored = rows_of(psycopg.conninfo.make_conninfo("", host=socket, port=port, user="postgres", dbname="hotel"))
    finally:
        carry_out(before[0], stopping)

    assert restored == expected
    assert len(expected["guests"]) > 2
    assert hotel.backup_id in said
    assert "hotel" in said.partition("List of databases")[2]
    assert not (target / "postmaster.pid").exists()


def test_the_page_names_this_version() -> None:
    assert f"dr_pipelines-{__version__}-py3-none-any.whl" in PAGE


def test_what_the_page_says_of_messages_is_what_the_code_says() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "dr_pipelines").rglob("*.py"))
    said = [text for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE) for text in re.findall(r"`([^`]+)`", row)]

    assert said
    for message in said:
        for piece in filter(None, (piece.strip() for piece in re.split(r"\.\.\.|\b15\b", message))):
            assert piece in code, piece
