"""Servers that are archived, and processes that are killed."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from dr_pipelines.repository.repository import Repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until
from tests import archived

ROOT = Path(__file__).parents[2]


class Victim:
    """A Python process that is killed with SIGKILL when something has happened, or after a while."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def kill_when(self, condition: Callable[[], object]) -> None:
        """Kill it as soon as the condition is met; it must not have ended before."""
        reached = wait_until(lambda: condition() or self._process.poll() is not None, timeout=60, interval=0.002)
        ended = self._process.poll()
        self.kill()
        assert reached and ended is None, f"it ended with {ended}: {self._log.read_text()}"

    def kill_after(self, seconds: float) -> None:
        """Kill it then, wherever it is; it may have ended before, well."""
        try:
            assert self._process.wait(seconds) == 0, self._log.read_text()
        except subprocess.TimeoutExpired:
            self.kill()

    def wait(self) -> int:
        """Let it end by itself; negative is the signal that ended it."""
        return self._process.wait(60)

    def is_dead(self) -> bool:
        """Whether it has killed itself by now; it must not have ended in another way."""
        ended = self._process.poll()
        assert ended in (None, -signal.SIGKILL), f"it ended with {ended}: {self._log.read_text()}"
        return ended is not None

    def dies(self) -> None:
        """Wait until it has killed itself."""
        ended = self._process.wait(timeout=120)
        assert ended == -signal.SIGKILL, f"it ended with {ended}: {self._log.read_text()}"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


Start = Callable[..., Victim]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process: the words after `python -m`, and its environment."""
    started: list[Victim] = []

    def start_one(*arguments: str, environment: Mapping[str, str]) -> Victim:
        started.append(Victim(list(arguments), environment, tmp_path / "victim.log"))
        return started[-1]

    yield start_one
    for victim in started:
        victim.kill()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A state folder and a repository in a folder."""
    with archived.state() as made:
        yield made.model_copy(update={"repository": str(tmp_path_factory.mktemp("repository")), "part_size": 1 << 18})


@pytest.fixture(scope="module")
def repository(settings: Settings) -> Repository:
    return archived.new_repository(Path(str(settings.repository)))


@pytest.fixture(scope="module")
def source(settings: Settings, repository: Repository) -> Iterator[archived.Source]:
    """An archived server with some data in it."""
    with archived.source(settings, repository) as running:
        running.do("CREATE TABLE big AS SELECT n, repeat(md5(n::text), 20) AS text FROM generate_series(1, 20000) n")
        yield running
