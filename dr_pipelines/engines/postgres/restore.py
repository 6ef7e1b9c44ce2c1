"""The files of a backup, brought back into a target and compared with PostgreSQL's own manifest."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.layout import Layout, WholeBackup
from dr_pipelines.engines.parts import PartReader, Progress
from dr_pipelines.engines.postgres.chain_reading import read_assembly
from dr_pipelines.engines.postgres.incremental import LABEL
from dr_pipelines.engines.postgres.target import OURS, PRIVATE
from dr_pipelines.errors import RestoreError
from dr_pipelines.processes.identity import Identity, run
from dr_pipelines.processes.postgres import Binaries
from dr_pipelines.repository.manifest import Manifest
from dr_pipelines.repository.store import Store

__all__ = ["restore_files"]

_VERIFIED = "verified.json"


def restore_files(
    store: Store,
    chain: Sequence[Manifest],
    target: Path,
    binaries: Binaries,
    *,
    identity: Identity | None,
    workers: int,
    progress: Progress,
) -> tuple[int, Check]:
    """Write a backup into a claimed target; returns how many parts were fetched now and what pg_verifybackup said.

    `chain` is the backup and, before an incremental one, what it is based on, from a full one on. Called again after an
    interruption it fetches what is missing; where nothing was, it returns what was said then.
    Where the files are not those of the backup though an earlier attempt had written them, all are fetched once more:
    a disk that failed since may have lost what was not yet on it.

    Raises ObjectCorrupt or ObjectMissing, which name the object, where a part is not what the manifest says.
    """
    for backup in chain:
        if strangers := [entry.path for entry in backup.files if entry.path.split("/")[0] in OURS]:
            raise RestoreError(f"the backup {backup.backup_id} holds {strangers[0]}, where a restore keeps its notes")
        if all(entry.path != LABEL for entry in backup.files):
            # Without it PostgreSQL would start on the files as if they were from one moment.
            raise RestoreError(f"the backup {backup.backup_id} holds no backup_label: no server can be made of it")
    note = target / PRIVATE / _VERIFIED
    checks: list[Check] = []

    def verify(fetched: int) -> None:
        # Once the server has been started on the files, they are no longer those of the backup.
        if fetched or not note.exists():
            checks[:] = [_verify(target, binaries, identity, reader)]
            draft = note.with_suffix(".draft")
            draft.write_text(json.dumps(asdict(checks[0])))
            draft.replace(note)

    layout: Layout = WholeBackup(chain[0]) if len(chain) == 1 else read_assembly(store, chain, workers)
    journal, owner = target / PRIVATE / "parts", (identity.uid, identity.gid) if identity is not None else None
    reader = PartReader(store, layout, target, journal=journal, owner=owner, workers=workers)
    fetched = reader.restore(progress, meanwhile=verify)
    if fetched < len(layout.parts) and checks and not checks[0].passed:
        reader.forget()
        fetched = reader.restore(progress, meanwhile=verify)
    return fetched, Check(**json.loads(note.read_text()))


def _verify(target: Path, binaries: Binaries, identity: Identity | None, reader: PartReader) -> Check:
    """pg_verifybackup over the restored files. The log is checked apart: it is not among them.

    PostgreSQL knows no checksums of files that are put together of several backups: those are read back.
    """
    ignored = [f"--ignore={name}" for name in OURS]
    command = [binaries["pg_verifybackup"], "--no-parse-wal", *ignored, "--quiet", str(target)]
    result = run(command, identity=identity, env={"LC_ALL": "C"}, timeout=4 * 3600, check=False)
    said = re.sub(r"\s+", " ", (result.stdout + result.stderr).strip())
    if result.returncode == 0 and (wrong := reader.read_back()):
        said = f"what was written of {', '.join(wrong[:3])} does not read back as it was written"
        return Check("pg_verifybackup", False, said)
    return Check("pg_verifybackup", result.returncode == 0, said[:500] or "every file as it was backed up")
