"""pg_hba.conf is read as PostgreSQL reads it: the first line that fits decides."""

import pytest

from dr_pipelines.onboarding.access import Rule, Way, decide, lines_for

BACKUP = Way("dr_backup", "postgres", "127.0.0.1")


def rule(text: str, line: int = 1) -> Rule:
    """A line of pg_hba.conf as the view shows it."""
    type_, databases, users, *rest = text.split()
    ip, _, bits = (rest[0] if type_ != "local" else "").partition("/")
    masks = {"32": "255.255.255.255", "8": "255.0.0.0", "0": "0.0.0.0", "128": "f" * 4 + ":ffff" * 7}
    return Rule(
        line, type_, tuple(databases.split(",")), tuple(users.split(",")), ip or None, masks.get(bits), rest[-1]
    )


DEBIAN = [
    "local all postgres peer",
    "local all all peer",
    "host all all 127.0.0.1/32 scram-sha-256",
    "host all all ::1/128 scram-sha-256",
    "local replication all peer",
    "host replication all 127.0.0.1/32 scram-sha-256",
    "host replication all ::1/128 scram-sha-256",
]


def read(lines: list[str]) -> list[Rule]:
    return [rule(text, number) for number, text in enumerate(lines, 1)]


@pytest.mark.parametrize(
    ("way", "replication", "line"),
    [
        (BACKUP, False, 3),
        (BACKUP, True, 6),
        (Way("dr_backup", "postgres", "::1"), False, 4),
        (Way("dr_backup", "postgres", None), False, 2),
        (Way("dr_backup", "postgres", None), True, 5),
        (Way("postgres", "postgres", None), False, 1),
        (Way("dr_backup", "postgres", "10.0.0.7"), False, None),
        (Way("dr_backup", "postgres", "10.0.0.7"), True, None),
    ],
)
def test_debians_stock_file(way: Way, replication: bool, line: int | None) -> None:
    door = decide(read(DEBIAN), way, replication=replication)

    assert door.sure
    assert (door.rule and door.rule.line) == line
    assert door.opens_to_password == (line in (3, 4, 6))


@pytest.mark.parametrize(
    ("lines", "replication", "opens", "sure"),
    [
        (["host all all all scram-sha-256"], False, True, True),
        (["host all all all scram-sha-256"], True, False, True),  # "all" is no replication
        (["host replication all all md5"], True, True, True),
        (["host all all 0.0.0.0/0 reject", "host all all all md5"], False, False, True),
        (["host all other all reject", "host postgres dr_backup samehost trust"], False, True, True),
        (["host other,postgres other,dr_backup 127.0.0.1/8 password"], False, True, True),
        (["host all +admins all reject", "host all all all md5"], False, True, False),
        (["host samerole all all reject", "host all all all md5"], False, True, False),
        (["host all all example.org reject", "host all all all md5"], False, True, False),
        (["hostssl all all all scram-sha-256"], False, False, True),
        (["hostnossl all all all scram-sha-256"], False, True, True),
        (["hostgssenc all all all gss"], False, False, True),
        (["host sameuser all all md5"], False, False, True),
        (["host all all all ident"], False, False, True),
        (["host all all ::1/128 md5"], False, False, True),
        ([], False, False, True),
    ],
)
def test_the_first_line_that_fits_decides(lines: list[str], replication: bool, opens: bool, sure: bool) -> None:
    door = decide(read(lines), BACKUP, replication=replication)

    assert (door.opens_to_password, door.sure) == (opens, sure)


@pytest.mark.parametrize(
    "way",
    [
        BACKUP,
        Way("dr_backup", "postgres", None),
        Way("dr_backup", "postgres", "10.0.0.7", encrypted=True),
        Way("dr_backup", "postgres", "10.0.0.0/8"),
        Way("dr_backup", "postgres", "fd00::7"),
    ],
)
def test_the_lines_that_are_proposed_let_the_role_in(way: Way) -> None:
    lines = lines_for(way)

    assert all(len(line.split()) == (4 if way.address is None else 5) for line in lines)
    assert decide(read_plain(lines), way, replication=False).opens_to_password
    assert decide(read_plain(lines), way, replication=True).opens_to_password
    assert not decide(read_plain(lines), Way("other", "postgres", way.address), replication=False).opens_to_password


def read_plain(lines: tuple[str, ...]) -> list[Rule]:
    """With the mask's bits left at the address, which means the same."""
    found = []
    for line in lines:
        type_, database, user, *rest = line.split()
        found.append(Rule(1, type_, (database,), (user,), rest[0] if type_ != "local" else None, None, rest[-1]))
    return found


def test_names_that_mean_something_else_are_quoted() -> None:
    lines = lines_for(Way("all", "my-db", "127.0.0.1"))

    assert lines[0].split()[1:3] == ['"my-db"', '"all"']
