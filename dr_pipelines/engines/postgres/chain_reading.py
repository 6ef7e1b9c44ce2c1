"""What is read of the backups of a chain before they are restored: which blocks each holds, and their labels."""

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dr_pipelines.engines.pieces import read_beginnings, read_file
from dr_pipelines.engines.postgres.assembly import Assembly, Headers, needed_partials
from dr_pipelines.engines.postgres.blocks import FIXED, Blocks, announced_size
from dr_pipelines.engines.postgres.incremental import LABEL, OWN_MANIFEST
from dr_pipelines.errors import ObjectCorrupt, RestoreError
from dr_pipelines.repository.manifest import Manifest
from dr_pipelines.repository.store import Store

__all__ = ["read_assembly"]

_BASED_ON = re.compile(rb"^INCREMENTAL FROM (LSN|TLI): (\S+)\n", re.MULTILINE)


def read_assembly(store: Store, chain: Sequence[Manifest], workers: int) -> Assembly:
    """How the backups of a chain become one, with the notes that PostgreSQL expects of a full backup.

    Raises RestoreError where one is not based on the one before, ObjectCorrupt and ObjectMissing.
    """
    with ThreadPoolExecutor(workers, "header") as pool:
        labels = list(pool.map(lambda backup: read_file(store, backup, LABEL), chain[1:]))
        for parent, backup, label in zip(chain, chain[1:], labels, strict=False):
            _require_parent(parent, backup, label)
        headers = list(pool.map(lambda pair: _headers(store, *pair), zip(chain, needed_partials(chain), strict=True)))
    label = _BASED_ON.sub(b"", labels[-1])
    # The rest of it is known when it is known how long the files are.
    plan = Assembly(chain, headers, {LABEL: label, OWN_MANIFEST: b""})
    own = _own_manifest(read_file(store, chain[-1], OWN_MANIFEST), chain[-1], plan, label)
    return Assembly(chain, headers, {LABEL: label, OWN_MANIFEST: own})


def _headers(store: Store, backup: Manifest, wanted: set[int]) -> Headers:
    def needed(beginning: bytes) -> int:
        return announced_size(beginning) if len(beginning) >= FIXED else FIXED

    found: dict[int, Blocks] = {}
    path = ""
    try:
        for index, header in read_beginnings(store, backup, wanted, needed).items():
            path = backup.files[index].path
            found[index] = Blocks.parse(header)
    except ValueError as error:
        raise ObjectCorrupt(f"{path} in the backup {backup.backup_id} cannot be read: {error}") from None
    return found


def _require_parent(parent: Manifest, backup: Manifest, label: bytes) -> None:
    based_on = dict(_BASED_ON.findall(label))
    expected = {b"LSN": str(parent.details["start_lsn"]).encode(), b"TLI": str(parent.details["timeline"]).encode()}
    if based_on != expected:
        said = ", ".join(f"{name.decode()} {value.decode()}" for name, value in sorted(based_on.items())) or "none"
        raise RestoreError(
            f"the backup {backup.backup_id} is not based on {parent.backup_id}: its own label says {said}",
            hint="an earlier backup and the log after it may do: dr restore --backup BACKUP_ID",
        )


def _own_manifest(content: bytes, newest: Manifest, plan: Assembly, label: bytes) -> bytes:
    """PostgreSQL's own list of files, as it would be of a full backup.

    Of files that are put together of several backups nobody has told a checksum.
    """
    try:
        document: dict[str, Any] = json.loads(content)
        entries = {_path(entry): entry for entry in document["Files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ObjectCorrupt(f"{OWN_MANIFEST} in the backup {newest.backup_id} cannot be read: {error!r}") from None
    files: list[dict[str, Any]] = []
    for number, (before, after) in enumerate(zip(newest.files, plan.files, strict=True)):
        entry = entries.get(before.path)
        if entry is None:
            continue
        if number in plan.assembled:
            entry = {name: value for name, value in entry.items() if "Path" not in name and "Checksum" not in name}
            entry |= {"Path": after.path, "Size": after.size}
        elif before.path == LABEL:
            digest = hashlib.sha256(label).hexdigest()
            entry |= {"Size": len(label), "Checksum-Algorithm": "SHA256", "Checksum": digest}
        files.append(entry)
    kept = {name: value for name, value in document.items() if name not in ("Files", "Manifest-Checksum")}
    text = json.dumps(kept | {"Files": files}).removesuffix("}").encode() + b",\n"
    return text + f'"Manifest-Checksum": "{hashlib.sha256(text).hexdigest()}"}}\n'.encode()


def _path(entry: dict[str, Any]) -> str:
    encoded = entry.get("Encoded-Path")
    if encoded is not None:
        return bytes.fromhex(encoded).decode(errors="surrogateescape")
    return str(entry["Path"])
