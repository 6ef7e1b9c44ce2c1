"""The design's arrows, and that a wrong import is caught."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTER = Path(sys.executable).with_name("lint-imports")


def lint(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINTER, "--no-logo", "--no-cache"], cwd=checkout, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the contracts are about."""
    packages = [name for name in ("dr_pipelines", "assets", "sensors") if (ROOT / name).is_dir()]
    for name in packages:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_import_follows_the_arrows() -> None:
    result = lint(ROOT)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("errors.py", "import dr_pipelines.settings", "imports between rooms go one way"),
        ("settings.py", "import dr_pipelines.lab", "imports between rooms go one way"),
        ("timing.py", "import dagster", "the library knows neither Dagster nor its code location"),
        ("cellar.py", "", "imports between rooms go one way"),
    ],
    ids=["upwards", "into the lab", "dagster in the library", "a room that the design does not know"],
)
def test_a_wrong_import_is_caught(checkout: Path, module: str, line: str, contract: str) -> None:
    with (checkout / "dr_pipelines" / module).open("a") as file:
        file.write(f"\n{line}\n")

    result = lint(checkout)

    assert result.returncode != 0
    assert f"{contract} BROKEN" in result.stdout
