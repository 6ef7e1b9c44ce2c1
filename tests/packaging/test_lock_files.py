"""The lock files: pinned, hashed, and free of any index's address."""

import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ["run", "dev"]
ADDRESS = re.compile(r"https?://|file://|^\s*(--index-url|--extra-index-url|--find-links|-i|-f)\b", re.MULTILINE)


def problems_of(lock: str) -> list[str]:
    """What keeps this text from being a lock file that installs the same thing everywhere."""
    problems = ["holds an address"] if ADDRESS.search(lock) else []
    for entry in re.sub(r"\\\n", " ", lock).splitlines():
        if not entry.strip() or entry.startswith("#"):
            continue
        if not re.match(r"\S+==\S+ ", entry):
            problems.append(f"not pinned: {entry}")
        if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry):
            problems.append(f"no hash: {entry}")
    return problems


def pins_of(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", LOCKS)
def test_everything_is_pinned_and_hashed_without_an_address(name: str) -> None:
    assert problems_of((ROOT / "requirements" / f"{name}.txt").read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "rich==15.0.0\n",
        "rich>=15.0.0 --hash=sha256:" + "0" * 64 + "\n",
        "--index-url somewhere\nrich==15.0.0 --hash=sha256:" + "0" * 64 + "\n",
        "rich==15.0.0 --hash=sha256:" + "0" * 64 + "  # from https" + "://somewhere\n",
    ],
    ids=["without a hash", "not pinned", "an index", "an address in a comment"],
)
def test_a_lock_file_that_is_not_one_is_noticed(text: str) -> None:
    assert problems_of(text)


def test_the_developers_lock_file_holds_the_other_at_the_same_versions() -> None:
    assert pins_of("run").items() <= pins_of("dev").items()


def test_the_lock_files_hold_what_the_project_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for name, requirements in {
        "run": project["dependencies"] + extras["dagster"] + extras["lab"],
        "dev": extras["dev"],
    }.items():
        pins = pins_of(name)
        for requirement in map(Requirement, requirements):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_no_file_that_sets_up_a_package_client_names_a_registry() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"(requirements.*\.(txt|in)|constraints.*\.txt|\.lock|pip\.conf|\.npmrc|pyproject\.toml)$")
    clients = [file for file in files if pattern.search(file)]

    assert "requirements/run.txt" in clients
    assert [file for file in clients if ADDRESS.search((ROOT / file).read_text())] == []
