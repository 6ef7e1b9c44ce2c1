"""`python -m benchmarks`: measure, print the table, and write docs/benchmarks.md."""

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import files
from benchmarks.files import BACKUP, COPY, DUMP, RESTORE, UNPACK, Result
from benchmarks.orchestration import Latency, measure_latency
from dr_pipelines.timing import format_bytes

_PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_AGAINST = {BACKUP: DUMP, RESTORE: COPY, UNPACK: COPY, DUMP: COPY}


def main() -> int:
    """Run what the arguments ask for; exit code 0 when all could be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", type=float, default=2.0, help="GB of rows (2)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--postgres", type=int, default=15, help="major version (15)")
    parser.add_argument("--runs", type=int, default=5, help="Dagster runs timed (5); 0: none")
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp"), help="where there is room for 5 times the size"
    )
    parser.add_argument("--page", type=Path, default=_PAGE, help="where the table goes")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dr-benchmark-", dir=arguments.folder))
    folder.chmod(0o755)
    try:
        result = files.run(folder, int(arguments.size * 1e9), arguments.rounds, arguments.postgres)
        latency = measure_latency(folder, arguments.runs) if arguments.runs else None
    finally:
        shutil.rmtree(folder)
    page = _page(result, latency, arguments.rounds)
    arguments.page.parent.mkdir(exist_ok=True)
    arguments.page.write_text(page)
    print(page)
    return 0


def _page(result: Result, latency: Latency | None, rounds: int) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Contenders take turns within each round; seconds are of one machine, ratios carry",
        "over.",
        "",
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {_machine()}; {_versions(result)};",
        f"{format_bytes(result.data_bytes)} of poorly compressible rows, checksums on, zstd level 1, repository in a",
        f"folder on the same disk, warm cache, median of {rounds} rounds.",
        "",
        "| | seconds | fastest to slowest | ratio | without starting Python | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name in (COPY, DUMP, BACKUP, UNPACK, RESTORE):
        low, high = result.spread(name)
        against = _AGAINST.get(name)
        ratio = f"{result.median(name) / result.median(against):.2f} of {against}" if against else "1"
        peak = format_bytes(result.peak(name)) if name in (BACKUP, RESTORE) else ""
        inner = result.inner(name)
        alone = f"{inner:.1f}" if inner is not None else ""
        # A pipe would end the cell.
        title, ratio = name.replace("|", "\\|"), ratio.replace("|", "\\|")
        lines.append(f"| {title} | {result.median(name):.1f} | {low:.1f} to {high:.1f} | {ratio} | {alone} | {peak} |")
    lines += [
        "",
        "`dr backup` includes hashing every part with SHA-256 and waiting until the log that the backup needs is in",
        "the repository; `dr restore (files)` includes checking every part's hash. Peak memory is that of our process",
        "alone.",
    ]
    if latency is not None:
        first, following = latency.medians
        lines += [
            "",
            "## Orchestration",
            "",
            "What Dagster adds, with deploy/dagster.yaml, by GraphQL as the UI does it: a fixed amount that counts in",
            "the RTO of a run that is launched there.",
            "",
            "| | median seconds | fastest to slowest |",
            "|---|---|---|",
            f"| run requested → first op | {first:.1f} | {_range(latency.requested_to_first)} |",
            f"| op → next op | {following:.2f} | {_range(latency.first_to_next)} |",
        ]
    return "\n".join(lines) + "\n"


def _range(values: tuple[float, ...]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    cores = Path("/proc/cpuinfo").read_text().count("processor\t")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    return f"{cores} cores ({model}), {format_bytes(memory)}, {platform.system()} {platform.release()}"


def _versions(result: Result) -> str:
    zstd = subprocess.run(["zstd", "--version"], capture_output=True, text=True, check=True).stdout.split("v")[-1]
    return (
        f"PostgreSQL {result.server}, Python {platform.python_version()}, zstandard {version('zstandard')}, "
        f"Dagster {version('dagster')}, zstd {zstd.split(',')[0].strip()}"
    )


if __name__ == "__main__":
    sys.exit(main())
