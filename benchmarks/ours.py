"""One backup or one restore by this project's own functions; prints the seconds that the function took."""

import sys
from pathlib import Path

from dr_pipelines.engines.parts import PartReader
from dr_pipelines.engines.postgres.backup import take_backup
from dr_pipelines.engines.postgres.coverage import choose, newest_system
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.settings import load_settings
from dr_pipelines.timing import Stopwatch, SystemClock

SERVICE = "database"


def _quiet(done: int, total: int) -> None:
    pass


def main(argv: list[str]) -> int:
    """`backup`, or `restore TARGET`; repository and connection come from the environment."""
    settings, clock = load_settings(), SystemClock()
    assert settings.repository is not None
    repository = open_repository(settings.repository, settings=settings)
    watch = Stopwatch(clock)
    if argv[0] == "backup":
        dsn = settings.dsn_of(SERVICE)
        assert dsn is not None
        binaries = find_binaries(settings)
        take_backup(SERVICE, dsn, repository, binaries, settings, clock=clock, progress=_quiet)
    else:
        target = Path(argv[1])
        target.mkdir(mode=0o700)
        store = newest_system(repository.service(SERVICE))
        manifest = choose(store, None).manifest
        journal = target.parent / f"{target.name}.parts"
        PartReader(store, manifest, target, journal=journal, owner=None, workers=settings.workers).restore(_quiet)
        journal.unlink()
    print(f"seconds {watch.elapsed().total_seconds():.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
