"""Chains of backups: a full one, then incremental ones, each of which holds what changed since its parent."""

from dataclasses import dataclass

from dr_pipelines.repository.manifest import BackupSurvey, Manifest

__all__ = ["BackupChain", "chain_of"]


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
