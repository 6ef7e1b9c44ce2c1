"""What every test may use: markers for software that a machine may lack, and folders that servers can reach.

A test that needs software says so: `@pytest.mark.needs("zstd")`, or `debian` and `browser`, which imply theirs. Where
it is missing the test is skipped and says what installs it; with `--require-software`, or in CI, it fails.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# What the shell that starts us ignores (in the background without job control it is Ctrl-C), all that we start ignores.
signal.signal(signal.SIGINT, signal.default_int_handler)
for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(each, signal.SIG_DFL)

SOFTWARE = {
    "postgres-15": Path("/usr/lib/postgresql/15/bin/postgres"),
    "chromium": Path("/usr/bin/chromium"),
    "zstd": Path("/usr/bin/zstd"),
    "faketime": Path("/usr/bin/faketime"),
}
IMPLIED = {"debian": "postgres-15", "browser": "chromium"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-software",
        action="store_true",
        default=bool(os.environ.get("CI")),
        help="a test whose software is missing fails, instead of being skipped",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = [str(name) for mark in item.iter_markers("needs") for name in mark.args]
    wanted += [name for marker, name in IMPLIED.items() if item.get_closest_marker(marker)]
    missing = sorted({name for name in wanted if not SOFTWARE[name].exists()})
    if not missing:
        return
    message = f"not installed: {', '.join(missing)} (as root, scripts/test-software.sh installs it)"
    if item.config.getoption("--require-software"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(autouse=True)
def same_signals() -> Iterator[None]:
    """What a test blocks, all processes that later tests start would never hear: SIGTERM, say."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture
def world_readable_folder() -> Iterator[Path]:
    """A new, empty folder that any user may read and pass through; servers run as another user than root."""
    folder = Path(tempfile.mkdtemp(prefix="dr-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
