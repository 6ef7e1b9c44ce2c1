"""Chains of backups: a full one, then incremental ones, each of which holds what changed since its parent."""

from dataclasses import dataclass, replace

from dr_pipelines.errors import ObjectMissing
from dr_pipelines.repository.envelope import Envelope
from dr_pipelines.repository.manifest import BackupSurvey, Manifest, Part
from dr_pipelines.repository.store import Store

__all__ = ["BackupChain", "chain_of", "missing_parts", "restorable"]


@dataclass(frozen=True)
class BackupChain:
    """What a restore of one backup needs."""

    backups: tuple[Manifest, ...]
    """Oldest first: the full backup, the incremental ones after it, and last the one that was asked for.

    Where the chain is broken, those after the break.
    """
    broken: str | None
    """Which backup of the chain cannot be used, and why; None where the chain is whole."""


def chain_of(manifest: Manifest, survey: BackupSurvey) -> BackupChain:
    """The chain that leads to a complete backup; a full backup is a chain by itself. Looks at manifests alone."""
    complete = {each.backup_id: each for each in survey.complete}
    chain = [manifest]
    seen = {manifest.backup_id}
    while (parent := chain[-1].parent) is not None:
        found = complete.get(parent)
        if found is None:
            return _broken(chain, _why_missing(parent, survey))
        if parent in seen:
            return _broken(chain, f"{parent} is based on what is based on it")
        if (found.service, found.system_identifier) != (manifest.service, manifest.system_identifier):
            return _broken(chain, f"{parent} is a backup of another system")
        seen.add(parent)
        chain.append(found)
    return BackupChain(tuple(reversed(chain)), None)


def _broken(chain: list[Manifest], why: str) -> BackupChain:
    return BackupChain(tuple(reversed(chain)), f"its chain is broken before {chain[-1].backup_id}: {why}")


def _why_missing(backup_id: str, survey: BackupSurvey) -> str:
    for damaged, error in survey.damaged:
        if damaged == backup_id:
            return f"{backup_id} cannot be used: {error}"
    if backup_id in survey.incomplete:
        return f"{backup_id} is not complete"
    return f"{backup_id} is missing"


def restorable(survey: BackupSurvey) -> BackupSurvey:
    """The survey with the incremental backups whose chain is broken among the damaged ones, with the reason."""
    chains = [(manifest, chain_of(manifest, survey)) for manifest in survey.complete]
    broken = tuple((manifest.backup_id, ObjectMissing(chain.broken)) for manifest, chain in chains if chain.broken)
    whole = tuple(manifest for manifest, chain in chains if chain.broken is None)
    return replace(survey, complete=whole, damaged=(*survey.damaged, *broken))


def missing_parts(store: Store, manifest: Manifest) -> tuple[str, ...]:
    """The keys of a backup's parts that are not there, or shorter than they were stored; nothing is read."""
    sizes = {found.key: found.size for found in store.list(f"backups/{manifest.backup_id}/parts/")}
    return tuple(part.key for part in manifest.parts if sizes.get(part.key, 0) < _least_size(part))


def _least_size(part: Part) -> int:
    """What the object of a part has at least, in bytes: a later version's header may say more."""
    envelope = Envelope(part.codec, part.encryption, part.stored_sha256, part.stored_size, part.raw_size)
    return len(envelope.header()) + part.stored_size
