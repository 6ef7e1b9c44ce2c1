"""What lies on the agent's host: repository, spool, script, environment file, systemd's unit. Pure."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from dr_pipelines.onboarding.environment import add_variables, parse_environment
from dr_pipelines.onboarding.items import Item, MakeFolder, MakeRepository, Mode, State, WriteFile, hidden
from dr_pipelines.onboarding.machine import Folder, Machine, Place
from dr_pipelines.onboarding.wishes import Wishes
from dr_pipelines.settings import variable

__all__ = [
    "environment_after",
    "environment_item",
    "next_steps",
    "repository_item",
    "script_item",
    "script_path",
    "spool_item",
    "unit_item",
    "wanted_environment",
]

_HEADING = "# For dr agent and dr backup, and for a shell: set -a; . THIS_FILE; set +a"
_SECRET = ("SECRET", "PASSWORD")


def repository_item(machine: Machine, wishes: Wishes) -> Item:
    """The repository, made where its place is empty."""
    title, why = f"the repository {wishes.repository}", "backups and log go there; a restore needs nothing else"
    if wishes.agent_host is not None and not wishes.repository.startswith("s3://"):
        why = f"{why}; {_not_ours(machine, wishes)}"
        return Item("repository", title, why, State.BY_HAND, f"dr backup full {wishes.service} --create, there")
    if machine.place is Place.REPOSITORY:
        return Item("repository", title, why, State.DONE)
    known = machine.environment is not None and machine.environment.get("DR_REPOSITORY") == wishes.repository
    if machine.place is Place.REFUSED or known:
        # It was made before: an empty place may be where its disk is not mounted now.
        why += f"; {machine.place_problem}" + ("; is its disk mounted?" if known else "")
        return Item("repository", title, why, State.BY_HAND)
    shown = f"{machine.place_problem}: it becomes one, of the user {machine.agent_user}"
    act = MakeRepository(wishes.repository, machine.agent_user)
    return Item("repository", title, why, State.TO_DO, shown, f"remove what is in {wishes.repository}", (act,))


def spool_item(machine: Machine, wishes: Wishes, mode: Mode) -> Item:
    """The folder that the log waits in: archive_command or the agent's receiver fills it, the agent empties it."""
    if mode is Mode.ARCHIVE:
        owner, wanted_mode, why = (
            machine.server_user or "postgres",
            0o2770,
            "PostgreSQL puts segments there for the agent",
        )
    else:
        owner, wanted_mode, why = machine.agent_user, 0o700, "the agent receives the log into it"
    title, path = f"the spool {machine.spool}", shlex.quote(str(machine.spool))
    wanted = Folder(wanted_mode, owner, machine.agent_group)
    if machine.spool_folder == wanted:
        return Item("spool", title, why, State.DONE)
    shown = f"install -d -m {wanted_mode:o} -o {owner} -g {machine.agent_group} {path}"
    if wishes.agent_host is not None:
        return Item("spool", title, f"{why}; {_not_ours(machine, wishes)}", State.BY_HAND, shown)
    if not machine.is_root and {owner, machine.agent_user} != {machine.user}:
        return Item("spool", title, f"{why}; to give it to {owner} takes root", State.BY_HAND, shown)
    act = MakeFolder(machine.spool, wanted.mode, wanted.owner, wanted.group)
    undo = f"rm -r {path}" if machine.spool_folder is None else "it was there, with other rights"
    return Item("spool", title, why, State.TO_DO, shown, undo, (act,))


def script_path(machine: Machine) -> Path:
    """Where the server finds scripts/backup.sh: in its place, or copied to where the server's user can execute it."""
    return machine.script if machine.script_in_reach else machine.installed


def script_item(machine: Machine) -> Item | None:
    """A copy of the script, where the server's user cannot execute it in its place."""
    if machine.script_in_reach:
        return None
    title = f"the script {machine.installed}"
    why = f"{machine.server_user} cannot execute {machine.script}, so the server gets a copy"
    if machine.installed_script == machine.script_text:
        return Item("script", title, why, State.DONE)
    shown = f"install -D -m 755 {machine.script} {machine.installed}"
    act = WriteFile(machine.installed, machine.script_text, machine.installed_script, mode=0o755)
    return Item("script", title, why, State.TO_DO, shown, f"rm {machine.installed}", (act,))


def wanted_environment(machine: Machine, wishes: Wishes, mode: Mode, dsn: str) -> dict[str, str]:
    """The variables that the agent, backups and the doctor need for this service; holds secrets."""
    wanted = {"DR_REPOSITORY": wishes.repository, **machine.variables}
    wanted |= {"DR_STATE_DIR": str(machine.state), "DR_PLAN": str(machine.plan)}
    wanted |= {variable("dsn", wishes.service): dsn, variable("spool", wishes.service): str(machine.spool)}
    wanted[variable("log", wishes.service)] = "stream" if mode is Mode.STREAMING else "archive"
    return wanted


def environment_after(
    machine: Machine, wishes: Wishes, wanted: Mapping[str, str], *, new_password: bool
) -> dict[str, str]:
    """What the environment file says in the end: what is there stays, but for a new password and the log's mode."""
    dsn, log = variable("dsn", wishes.service), variable("log", wishes.service)
    ours = {log: wanted[log]} | ({dsn: wanted[dsn]} if new_password else {})
    return {**wanted, **(machine.environment or {}), **ours}


def environment_item(machine: Machine, wishes: Wishes, wanted: Mapping[str, str], after: Mapping[str, str]) -> Item:
    """The environment file: what is missing is added; what says something else stays, and is told."""
    path, there = machine.environment_file(wishes), machine.environment or {}
    title = f"the environment file {path}"
    why = f"the agent, backups and the doctor read it; it holds a password, so nobody but {machine.agent_user} may"
    changed = {name: value for name, value in after.items() if there.get(name) != value}
    other = {name for name, value in wanted.items() if after[name] != value}
    if other:
        why += f"; it says something else of {', '.join(sorted(other))}, which stays"
    if not changed:
        state = State.BY_HAND if other else State.DONE
        return Item("environment", title, why, state, _shown({name: wanted[name] for name in sorted(other)}))
    content = add_variables(machine.environment_text or "", changed, heading=_HEADING)
    undo = f"rm {path}" if machine.environment is None else f"take {', '.join(changed)} out of {path}"
    if wishes.agent_host is not None or not machine.may_configure:
        why += f"; {_not_ours(machine, wishes)}"
        return Item("environment", title, why, State.BY_HAND, _shown(changed), undo)
    act = WriteFile(path, content, machine.environment_text, mode=0o600, owner=machine.agent_user)
    return Item("environment", title, why, State.TO_DO, _shown(changed), undo, (act,))


def _not_ours(machine: Machine, wishes: Wishes) -> str:
    if wishes.agent_host is not None:
        return f"it belongs on the agent's host, {wishes.agent_host}"
    return f"{machine.user} may not write there"


def _shown(variables: Mapping[str, str]) -> str:
    """As in the file, with secrets out of sight."""
    safe = {
        name: hidden(value)
        if name.startswith("DR_DSN__")
        else "***"
        if any(word in name for word in _SECRET)
        else value
        for name, value in variables.items()
    }
    text = add_variables("", safe, heading=_HEADING)
    assert parse_environment(text) == safe
    return text.rstrip("\n")


def unit_item(machine: Machine, wishes: Wishes, data: str) -> Item:
    """The unit that keeps the agent running. It is started by whoever looks after the machine."""
    path = machine.unit_file(wishes)
    text = _unit(machine, wishes, data)
    title, why = f"systemd's unit {path}", "the agent has to run always: what it does not ship is lost with the host"
    if machine.unit_text == text:
        return Item("unit", title, why, State.DONE)
    if machine.unit_text is not None:
        why += "; it is there, and says something else: it stays"
        return Item("unit", title, why, State.BY_HAND, text)
    if wishes.agent_host is not None or not machine.may_configure:
        return Item("unit", title, f"{why}; {_not_ours(machine, wishes)}", State.BY_HAND, text)
    undo = f"systemctl disable --now {path.name}; rm {path}"
    return Item("unit", title, why, State.TO_DO, text, undo, (WriteFile(path, text, None, mode=0o644),))


def next_steps(machine: Machine, wishes: Wishes) -> tuple[str, ...]:
    """How the agent is started, and how a shell gets its environment."""
    unit, file = machine.unit_file(wishes).name, machine.environment_file(wishes)
    if machine.supervised:
        start = f"systemctl daemon-reload && systemctl enable --now {unit}"
    else:
        start = (
            f"keep this running, by what supervises this machine: {machine.command} agent --service {wishes.service}"
        )
    return (start, f"set -a; . {file}; set +a    gives a shell what the commands need")


def _unit(machine: Machine, wishes: Wishes, data: str) -> str:
    writable = [str(machine.state), str(machine.spool)]
    if "://" not in wishes.repository:
        writable.append(wishes.repository)
    closed = f"InaccessiblePaths=-{_escaped(data)}\n" if machine.agent_is_here and data else ""
    return f"""\
# The agent of {wishes.service}: keeps its log flowing to the repository. Made by dr init {wishes.service}.
[Unit]
Description=dr_pipelines: keeps the log of {wishes.service} flowing to the backup repository
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
User={machine.agent_user}
EnvironmentFile={_escaped(str(machine.environment_file(wishes)))}
ExecStart={_escaped(str(machine.command))} agent --service {wishes.service}
Restart=always
RestartSec=2
# The agent alone is told to stop: it ends its receiver, ships what that has, and then itself.
KillMode=mixed
TimeoutStopSec=30
ReadWritePaths={" ".join(f"-{_escaped(path)}" for path in writable)}
{closed}ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
NoNewPrivileges=yes

[Install]
WantedBy=multi-user.target
"""


def _escaped(path: str) -> str:
    """A path as a unit holds it: % begins a specifier, and a space ends a word."""
    return path.replace("%", "%%").replace(" ", "\\x20")
