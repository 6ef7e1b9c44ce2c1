"""archive_command is somebody's, ours or nobody's."""

from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.inspect import spool_of_command
from dr_pipelines.errors import ConfigurationError
from dr_pipelines.onboarding.archiving import Archiver, archive_command, archiver_of


@pytest.mark.parametrize(
    ("command", "library", "owner"),
    [
        ("", "", None),
        ("(disabled)", "", None),
        ("/bin/true", "", None),
        ("exit 0", "", None),
        ("pgbackrest --stanza=main archive-push %p", "", "pgBackRest"),
        ("barman-wal-archive backup main %p", "", "Barman"),
        ("rsync -a %p barman@backup:/var/lib/barman/main/incoming/%f", "", "Barman"),
        ("barman-cloud-wal-archive s3://b main %p", "", "Barman"),
        ("envdir /etc/wal-g wal-g wal-push %p", "", "WAL-G"),
        ("/usr/bin/walg wal-push %p", "", "WAL-G"),
        ("wal-e wal-push %p", "", "WAL-E"),
        ("test ! -f /b/%f && cp %p /b/%f", "", "a command of somebody's own"),
        ("/x/backup.sh wal %p %f", "", "a command of somebody's own"),
        ("", "basic_archive", "the library basic_archive"),
    ],
)
def test_whose_it_is(command: str, library: str, owner: str | None) -> None:
    assert archiver_of(command, library) == Archiver(owner)


def test_ours_is_known_by_its_spool() -> None:
    command = archive_command(Path("/opt/dr pipelines/scripts/backup.sh"), Path("/var/spool/dr shop"))

    assert archiver_of(command) == Archiver(None, Path("/var/spool/dr shop"))
    assert spool_of_command(command) == Path("/var/spool/dr shop")


@pytest.mark.parametrize("path", ["/a%b", "/it's", "relative", "/new\nline"])
def test_a_path_that_the_command_cannot_hold_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="absolute path"):
        archive_command(Path("/opt/backup.sh"), Path(path))
