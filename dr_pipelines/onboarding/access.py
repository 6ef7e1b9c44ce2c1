"""pg_hba.conf: whether a role gets in from an address, by which line, and the lines that let it in. Pure."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Door", "Rule", "Way", "decide", "lines_for"]

PASSWORDS = ("scram-sha-256", "md5", "password")
_LOCAL = ("localhost", "")


@dataclass(frozen=True)
class Rule:
    """One line, as pg_hba_file_rules tells it."""

    line: int
    type: str
    databases: tuple[str, ...]
    users: tuple[str, ...]
    address: str | None
    netmask: str | None
    method: str
    file: str = ""

    @property
    def place(self) -> str:
        """Where it stands, for people."""
        return f"{self.file}:{self.line}" if self.file else f"line {self.line}"


@dataclass(frozen=True)
class Way:
    """How the role comes: by a socket where `address` is None."""

    role: str
    database: str
    address: str | None
    encrypted: bool = False


@dataclass(frozen=True)
class Door:
    """What pg_hba.conf does with somebody who comes this way; `rule` None: no line is about him, so he is refused.

    `sure` is False where a line before it could not be judged here: one that names a host, a group or a pattern.
    """

    rule: Rule | None
    sure: bool

    @property
    def opens_to_password(self) -> bool:
        """Whether a password is what it takes, or nothing at all."""
        return self.rule is not None and self.rule.method in (*PASSWORDS, "trust")


def decide(rules: Iterable[Rule], way: Way, *, replication: bool) -> Door:
    """The first line that fits, as PostgreSQL looks for it."""
    sure = True
    for rule in rules:
        answers = (_type(rule, way), _database(rule, way, replication), _user(rule, way), _address(rule, way))
        if False in answers:
            continue
        if None in answers:
            sure = False
            continue
        return Door(rule, sure)
    return Door(None, sure)


def lines_for(way: Way) -> tuple[str, ...]:
    """The lines that let the role in by password: into its one database, and for backups and the log."""
    if way.address is None:
        start, where = "local", ""
    else:
        network = ipaddress.ip_network(way.address, strict=False)
        start, where = ("hostssl" if way.encrypted else "host"), str(network)
    names = (_quoted(way.database), "replication")
    return tuple(f"{start:<8}{name:<16}{_quoted(way.role):<16}{where:<24}scram-sha-256" for name in names)


def _quoted(name: str) -> str:
    """A name that no keyword or pattern is made of."""
    plain = name.isidentifier() and name.lower() == name and name not in ("all", "replication", "sameuser", "samerole")
    return name if plain else '"' + name.replace('"', '""') + '"'


def _type(rule: Rule, way: Way) -> bool:
    if way.address is None or rule.type == "local":
        return way.address is None and rule.type == "local"
    return rule.type == "host" or (rule.type in ("hostssl", "hostgssenc")) == way.encrypted


def _database(rule: Rule, way: Way, replication: bool) -> bool | None:
    if replication:
        return "replication" in rule.databases
    if "all" in rule.databases or way.database in rule.databases:
        return True
    if "sameuser" in rule.databases and way.database == way.role:
        return True
    return None if any(name in ("samerole", "samegroup") or name[:1] in "/@" for name in rule.databases) else False


def _user(rule: Rule, way: Way) -> bool | None:
    if "all" in rule.users or way.role in rule.users:
        return True
    return None if any(name[:1] in "+/@" for name in rule.users) else False


def _address(rule: Rule, way: Way) -> bool | None:
    if way.address is None or rule.address == "all":
        return True
    ours = ipaddress.ip_interface(way.address).ip
    if rule.address in ("samehost", "samenet"):
        return True if ours.is_loopback else None
    try:
        # A mask is written out, also those of IPv6.
        bits = f"/{int(ipaddress.ip_address(rule.netmask)).bit_count()}" if rule.netmask else ""
        network = ipaddress.ip_network(f"{rule.address}{bits}", strict=False)
    except ValueError:
        return None  # the name of a host
    return ours.version == network.version and ours in network
