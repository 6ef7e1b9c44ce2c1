"""Missing software: skipped where a person tests, failed where nothing may be missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """
import pytest

@pytest.mark.needs("unicorn")
def test_that_needs_what_is_not_there():
    raise AssertionError("this must not run")

@pytest.mark.debian
def test_that_needs_what_a_marker_implies():
    raise AssertionError("this must not run")

@pytest.mark.needs("shell")
def test_that_needs_what_is_there():
    pass
"""


def outcome(folder: Path, *options: str, ci: bool = False) -> tuple[int, str]:
    """The exit status and the closing line of a small test run on a machine that has a shell and nothing else."""
    shutil.copy(CONFTEST, folder / "conftest.py")
    with (folder / "conftest.py").open("a") as file:
        file.write(
            '\nSOFTWARE = dict.fromkeys([*SOFTWARE, "unicorn"], Path("/nowhere")) | {"shell": Path("/bin/sh")}\n'
        )
    (folder / "test_sample.py").write_text(TESTS)
    environment = {name: value for name, value in os.environ.items() if name not in {"CI", "PYTEST_ADDOPTS"}}
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "markers=needs\ndebian",
            *options,
            folder,
        ],
        cwd=folder,
        env=environment | ({"CI": "true"} if ci else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout.splitlines()[-1]


def test_a_person_sees_the_test_skipped(tmp_path: Path) -> None:
    status, line = outcome(tmp_path)

    assert (status, line.split(" in ")[0]) == (0, "1 passed, 2 skipped")


@pytest.mark.parametrize(("options", "ci"), [((), True), (("--require-software",), False)], ids=["in CI", "on request"])
def test_where_nothing_may_be_missing_the_test_fails(tmp_path: Path, options: tuple[str, ...], ci: bool) -> None:
    status, line = outcome(tmp_path, *options, ci=ci)

    assert (status, line.split(" in ")[0]) == (1, "1 passed, 2 errors")
