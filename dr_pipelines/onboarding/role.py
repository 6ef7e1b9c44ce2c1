"""The role that backs up and its way in: SQL with the least privilege, lines of pg_hba.conf, a login to try. Pure."""

from dataclasses import dataclass

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from dr_pipelines.onboarding.access import Door, Way, decide, lines_for
from dr_pipelines.onboarding.items import AppendRules, Item, Login, MakeRole, State
from dr_pipelines.onboarding.machine import Machine
from dr_pipelines.onboarding.server import Server
from dr_pipelines.onboarding.wishes import Wishes

__all__ = ["Tried", "access_item", "cannot_replicate", "login_item", "role_dsn", "role_item"]

COMMENT = "takes backups, by dr_pipelines"
_ADMINISTRATORS = ("password", "passfile", "sslcert", "sslkey", "sslpassword", "sslcertmode", "service", "options")
"""What of the administrator's connection string is his own."""


@dataclass(frozen=True)
class Tried:
    """What came of logging in as the role; None: it was let in."""

    login: str | None
    replication: str | None

    @property
    def works(self) -> bool:
        """Whether backups can be taken as the role."""
        return self.login is None and self.replication is None


def role_dsn(dsn: str, server: Server, machine: Machine, wishes: Wishes) -> str:
    """How the role reaches the server: as the administrator does, but on this machine by TCP where that is open."""
    given = {key: value for key, value in conninfo_to_dict(dsn).items() if key not in _ADMINISTRATORS}
    given |= {"user": wishes.role, "password": wishes.password.get_secret_value(), "dbname": wishes.connect_to}
    if wishes.agent_host is not None and server.administrator.address is None:
        given |= {"host": machine.name, "port": server.value("port")}
    elif machine.server_is_here and server.administrator.address is None:
        listens = {name.strip() for name in server.value("listen_addresses").split(",")}
        if listens & {"*", "0.0.0.0", "localhost", "127.0.0.1"}:
            given["host"] = "127.0.0.1"
        # Of a socket, which is a folder and a port, the port may have been left out.
        given["port"] = server.value("port")
    return make_conninfo("", **given)


def _way(dsn: str, server: Server, wishes: Wishes) -> Way:
    host = str(conninfo_to_dict(dsn).get("host") or "")
    if wishes.agent_host is not None:
        address: str | None = wishes.agent_host
    elif host.startswith("/") or not host:
        address = None
    else:
        address = server.administrator.address or host
    return Way(wishes.role, wishes.connect_to, address, server.administrator.encrypted)


def cannot_replicate(server: Server, tried: Tried | None) -> str | None:
    """Why nobody here can give the role REPLICATION; None where it has it, or the administrator can."""
    administrator = server.administrator
    if administrator.superuser or (server.role is not None and server.role.may_replicate):
        return None
    if tried is not None and tried.works:
        return None
    if server.facts.major >= 16 and administrator.may_create_roles and administrator.may_replicate:
        return None
    if server.facts.major < 16:
        return (
            f"PostgreSQL {server.facts.major} lets only a superuser give REPLICATION, and {administrator.name} is none"
        )
    lacks = [
        name
        for name, has in (("CREATEROLE", administrator.may_create_roles), ("REPLICATION", administrator.may_replicate))
        if not has
    ]
    return (
        f"{administrator.name} is no superuser and lacks {' and '.join(lacks)}, without which nobody gives REPLICATION"
    )


def role_item(server: Server, wishes: Wishes, tried: Tried | None) -> Item:
    """The role: made where it is not there, else given what it lacks."""
    name, role = sql.Identifier(wishes.role), server.role
    needed: list[sql.Composable] = []
    if role is None:
        literal = sql.Literal(wishes.role)
        make = "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {}) THEN CREATE ROLE {}; END IF; END $$"
        needed.append(sql.SQL(make).format(literal, name))
        needed.append(sql.SQL("COMMENT ON ROLE {} IS {}").format(name, sql.Literal(COMMENT)))
    works = tried is not None and tried.works  # by membership in a group of the provider's, say
    if role is None or not (works or (role.may_login and role.may_replicate)):
        needed.append(sql.SQL("ALTER ROLE {} LOGIN REPLICATION").format(name))
    if not server.may_connect:
        needed.append(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(wishes.connect_to), name))
    for each in server.missing:
        needed.append(sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(sql.SQL(each.function), name))
    statements = tuple(statement.as_string(None) for statement in needed)
    sets_password = role is None or wishes.reset_password
    shown = [f"{statement};" for statement in statements]
    if sets_password:
        shown.append(
            f"\\password {wishes.role}    -- sent as a SCRAM verifier, so that no log of the server's holds it"
        )
    why = "LOGIN and REPLICATION are what a copy of the server takes; it may query no table, and change nothing"
    if role is not None and role.more:
        why += f". It may more than that: {', '.join(role.more)}"
    title = f"the role {wishes.role}"
    if not shown:
        return Item("role", title, why, State.DONE)
    undo = f"DROP ROLE {wishes.role};" if role is None else "it was there before: take back what was granted above"
    act = MakeRole(wishes.role, statements, wishes.password if sets_password else None)
    return Item("role", title, why, State.TO_DO, "\n".join(shown), undo, (act,))


def access_item(dsn: str, server: Server, machine: Machine, wishes: Wishes, tried: Tried | None) -> Item:
    """The lines of pg_hba.conf that let the role in; nothing where it gets in already."""
    way = _way(dsn, server, wishes)
    title, why = "pg_hba.conf", "the role has to get in by password, to its database and for replication"
    if tried is not None and tried.works:
        return Item("access", title, why, State.DONE, "it gets in")
    if server.rules is None:
        seen = "this administrator may not read it; whether the role gets in is tried"
        return Item("access", title, why, State.DONE, seen)
    doors = {kind: decide(server.rules, way, replication=kind == "replication") for kind in ("login", "replication")}
    if all(door.opens_to_password and door.sure for door in doors.values()):
        path = server.value("hba_file")
        places = {f"{door.rule.file or path}:{door.rule.line}" for door in doors.values() if door.rule is not None}
        return Item("access", title, why, State.DONE, f"let in by {' and '.join(sorted(places))}")
    lines = [line for line, door in zip(lines_for(way), doors.values(), strict=True) if not door.opens_to_password]
    return _append(lines or list(lines_for(way)), doors, server, machine, wishes)


def _append(lines: list[str], doors: dict[str, Door], server: Server, machine: Machine, wishes: Wishes) -> Item:
    path = server.value("hba_file")
    title, why = f"pg_hba.conf ({path})", "the role has to get in by password, to its database and for replication"
    text = "\n".join([f"# dr_pipelines: {wishes.role} takes backups (dr init {wishes.service})", *lines])
    in_the_way = [door.rule for door in doors.values() if door.rule is not None and not door.opens_to_password]
    if in_the_way:
        first = min(in_the_way, key=lambda rule: rule.line)
        why += f"; {first.place} comes first and wants {first.method}, so these lines belong above it"
        return Item("access", title, why, State.BY_HAND, f"{text}\n# then: SELECT pg_reload_conf();")
    undo = f"take the lines out of {path} again (a copy from before lies beside it), then SELECT pg_reload_conf();"
    if machine.access_file is None:
        why += "; that file is not on this machine, or not ours to write"
        return Item("access", title, why, State.BY_HAND, f"{text}\n# then: SELECT pg_reload_conf();", undo)
    return Item("access", title, why, State.TO_DO, text, undo, (AppendRules(machine.access_file, text),))


def login_item(dsn: str, tried: Tried | None, wishes: Wishes, access: Item) -> Item:
    """The proof: it logs in and connects as for a backup."""
    title, why = "the role logs in, and connects as for a backup", "tried, since many things have a say in it"
    if wishes.agent_host is not None:
        return Item("login", title, f"{why}; from the agent's host", State.BY_HAND, "dr doctor, there")
    if tried is not None and tried.works:
        return Item("login", title, why, State.DONE)
    if access.state is State.BY_HAND:
        return Item("login", title, f"{why}; once pg_hba.conf lets it in", State.BY_HAND)
    return Item("login", title, why, State.TO_DO, acts=(Login(SecretStr(dsn)),))
