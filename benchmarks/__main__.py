"""`python -m benchmarks [NAME ...]`: measure, print, and write each result into its section of docs/benchmarks.md."""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import archive, field, incremental, orchestration, pgbackrest, replay
from benchmarks.page import put

_PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> int:
    """Run what the arguments ask for; exit code 0 when all could be measured, whatever it is."""
    arguments = _parser().parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    sections: dict[str, Callable[[Path], str]] = {
        "field": lambda folder: field.run(
            folder, _bytes(arguments.sizes[0]), arguments.rounds, arguments.postgres, until=until
        ),
        "pgbackrest": lambda folder: pgbackrest.run(
            folder,
            [pgbackrest.Size.of(_bytes(size), arguments.rounds) for size in arguments.sizes],
            arguments.postgres,
            until=until,
        ),
        # Before 17 there are none.
        "incremental": lambda folder: incremental.run(
            folder, _bytes(arguments.sizes[0]), arguments.rounds, max(arguments.postgres, 18), until=until
        ),
        "replay": lambda folder: replay.run(
            folder, _bytes(arguments.log), arguments.rounds, arguments.postgres, until=until
        ),
        "archive": lambda folder: archive.run(folder, arguments.segments, arguments.postgres),
        "orchestration": lambda folder: orchestration.run(folder, arguments.rounds),
    }
    for name in arguments.names or sections:
        folder = Path(tempfile.mkdtemp(prefix="dr-benchmark-", dir=arguments.folder))
        folder.chmod(0o755)
        try:
            text = sections[name](folder)
        finally:
            shutil.rmtree(folder)
        put(arguments.page, name, text)
        print(text, flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="examples:\n"
        "  python -m benchmarks pgbackrest --sizes 0.5 --rounds 2    a first look\n"
        "  python -m benchmarks pgbackrest --minutes 40              all sizes, no round begun after 40 minutes\n"
        "  python -m benchmarks replay archive                       two sections\n",
    )
    names = ("field", "pgbackrest", "incremental", "replay", "archive", "orchestration")
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*names, []], help=f"of {', '.join(names)}; or all")
    parser.add_argument("--sizes", type=float, nargs="+", default=[2.0, 8.0, 16.0], help="GB of rows (2 8 16)")
    parser.add_argument("--log", type=float, default=2.0, help="GB of log to replay (2)")
    parser.add_argument("--segments", type=int, default=200, help="segments to archive (200)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--minutes", type=float, default=600, help="no round begins later than that (600)")
    parser.add_argument("--postgres", type=int, default=15, help="major version (15)")
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp"), help="where there is room for 4 times the size (/var/tmp)"
    )
    parser.add_argument("--page", type=Path, default=_PAGE, help="where the sections go")
    return parser


def _bytes(gigabytes: float) -> int:
    return int(gigabytes * 1e9)


if __name__ == "__main__":
    sys.exit(main())
