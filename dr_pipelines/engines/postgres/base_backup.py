"""`pg_basebackup`, run and watched: what it streams, and its own words where it fails."""

import contextlib
import fcntl
import io
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import psycopg

from dr_pipelines.engines.postgres.connection import connect, for_a_tool
from dr_pipelines.errors import BackupError, ProcessError
from dr_pipelines.processes.postgres import Binaries

__all__ = ["base_backup"]

_WATCHER_PATIENCE = 30.0
"""Seconds that the watcher has to end; one that waits for a server that hangs is left to itself."""
_WAITING = """
SELECT count(*) FROM pg_stat_progress_basebackup p JOIN pg_stat_activity a USING (pid)
WHERE p.phase = 'waiting for wal archiving to finish' AND a.application_name = %s
"""


@contextlib.contextmanager
def base_backup(
    dsn: str, binaries: Binaries, name: str, archive_patience: float, parent: Path | None
) -> Iterator[io.BufferedReader]:
    """What pg_basebackup writes to its standard output; raises BackupError with its own words where it fails.

    The server knows it by `name`. `parent` is the manifest that an incremental backup is based on.
    """
    command = [
        binaries["pg_basebackup"],
        *("--pgdata=-", "--format=tar", "--wal-method=none", "--checkpoint=fast", "--no-password"),
        # Each part is hashed with SHA-256 on its way; PostgreSQL's own manifest needs no more than its default.
        "--manifest-checksums=CRC32C",
        "--label=dr_pipelines",
        *([f"--incremental={parent}"] if parent is not None else []),
    ]
    with for_a_tool(dsn, name) as (conninfo, environment):
        process = subprocess.Popen(
            [*command, f"--dbname={conninfo}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd="/"
        )
        with _reading(process, dsn, name, archive_patience) as stream:
            yield stream


@contextlib.contextmanager
def _reading(
    process: subprocess.Popen[bytes], dsn: str, name: str, archive_patience: float
) -> Iterator[io.BufferedReader]:
    """What the process writes, while it is watched; it has ended when the block does."""
    assert process.stdout is not None and process.stderr is not None
    words: list[bytes] = []
    # Read beside the data: a full pipe of messages would stop the backup.
    listener = threading.Thread(target=lambda: words.append(cast(BinaryIO, process.stderr).read()), daemon=True)
    listener.start()
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 1 << 20)
    over, stuck = threading.Event(), threading.Event()
    watcher = threading.Thread(
        target=_watch_archiving, args=(process, dsn, name, archive_patience, over, stuck), daemon=True
    )
    watcher.start()
    try:
        yield cast(io.BufferedReader, process.stdout)
        code = process.wait()
    except BaseException as error:
        process.kill()
        process.wait()
        listener.join()
        if stuck.is_set():
            raise BackupError(
                f"PostgreSQL's log was not archived within {archive_patience:.0f} s of the end of the backup",
                hint="archive_command fails or hangs: the server's own log and pg_stat_archiver say why; dr doctor",
            ) from error
        said = b"".join(words).decode(errors="replace").strip()
        if isinstance(error, BackupError) and said:
            raise type(error)(f"pg_basebackup failed: {said}") from error
        raise
    finally:
        over.set()
        watcher.join(_WATCHER_PATIENCE)
        listener.join()
        process.stdout.close()
        process.stderr.close()
    if code != 0:
        raise BackupError(f"pg_basebackup ended with {code}: {b''.join(words).decode(errors='replace').strip()}")


def _watch_archiving(
    process: subprocess.Popen[bytes],
    dsn: str,
    name: str,
    patience: float,
    over: threading.Event,
    stuck: threading.Event,
) -> None:
    """Kill pg_basebackup where PostgreSQL, its data sent, waits too long for its archive: it would wait for ever."""
    interval, waited = min(5.0, patience / 4), 0.0
    while not over.wait(interval):
        try:
            with connect(dsn) as connection:
                connection.execute("SET statement_timeout = '10s'")
                row = connection.execute(_WAITING, (name,)).fetchone()
        except (ProcessError, psycopg.Error):
            continue
        waited = waited + interval if row is not None and row[0] else 0.0
        if waited > patience:
            stuck.set()
            process.kill()
            return
