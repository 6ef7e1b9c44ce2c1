"""A recovery plan from its file: read, checked, and accepted or refused with everything that is wrong in it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dr_pipelines.errors import PlanError
from dr_pipelines.plan.checks import check_plan
from dr_pipelines.plan.findings import Finding, Level
from dr_pipelines.plan.models import PLAN_VERSION, Plan, PlanDocument, Runbook, Service, Tier, did_you_mean
from dr_pipelines.plan.schema import fields_at
from dr_pipelines.plan.source import Loc, Source, read_source

__all__ = ["inspect_plan", "load_plan", "parse_plan", "read_plan_text"]

_MAX_BYTES = 1_000_000
_MAX_SHOWN = 50
_TOO_LARGE = f"found more than {_MAX_BYTES} bytes; expected a recovery plan of at most 1 MB"
_HINT = "mend the plan and run: dr plan check"


def load_plan(path: Path) -> Plan:
    """Read a plan. Raises PlanError with every problem: file and line, field, what was found, what is expected."""
    return parse_plan(read_plan_text(path), name=str(path))


def parse_plan(text: str, *, name: str = "recovery-plan.yaml") -> Plan:
    """Read a plan from its text; `name` stands for the file. Raises PlanError as `load_plan` does."""
    plan, findings = inspect_plan(text)
    if plan is None:
        raise _refusal(name, [finding for finding in findings if finding.level is Level.ERROR])
    return plan


def read_plan_text(path: Path) -> str:
    """The text of a plan's file. Raises PlanError where it cannot be read, is larger than 1 MB or is not UTF-8."""
    hint = "DR_PLAN names the plan's file"
    try:
        if path.exists() and not path.is_file():
            raise PlanError(f"{path}: found something that is not a file; expected a recovery plan", hint=hint)
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise PlanError(f"{path}: there is no such file; expected a recovery plan", hint=hint) from None
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
    if len(content) > _MAX_BYTES:
        raise PlanError(f"{path}: {_TOO_LARGE}", hint=hint)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"found the byte 0x{content[error.start]:02x}, which is not UTF-8; expected text in UTF-8"
        raise PlanError(f"{path}:{line}: {found}", hint="save the file as UTF-8") from None


def inspect_plan(text: str) -> tuple[Plan | None, tuple[Finding, ...]]:
    """Everything that is wrong or too tight in a plan's text, by line, and the plan where nothing in it is an error."""
    if len(text.encode("utf-8", errors="replace")) > _MAX_BYTES:
        return None, (Finding(Level.ERROR, "", _TOO_LARGE, None),)
    source = read_source(text)
    if not isinstance(source.value, Mapping):
        return None, tuple(source.problems.values())
    version = source.value.get("plan_version")
    if type(version) is int and version > PLAN_VERSION:
        # What else is in it follows rules that are not known here.
        message = f"found {version}, a newer format; expected {PLAN_VERSION}, or a newer release of dr_pipelines"
        return None, (Finding(Level.ERROR, "plan_version", message, source.lines[("plan_version",)]),)
    _check_shape(source)
    _check_names(source)
    plan = _accepted(source, text)
    findings = [*source.problems.values(), *check_plan(plan)]
    findings.sort(key=lambda finding: finding.line or 0)
    refused = any(finding.level is Level.ERROR for finding in findings)
    return (None if refused else plan), tuple(findings)


def _refusal(name: str, problems: list[Finding]) -> PlanError:
    lines = [problem.located(name) for problem in problems]
    if len(lines) == 1:
        return PlanError(lines[0], hint=_HINT)
    more = [f"and {len(lines) - _MAX_SHOWN} more"] if len(lines) > _MAX_SHOWN else []
    shown = "".join(f"\n  {line}" for line in lines[:_MAX_SHOWN] + more)
    return PlanError(f"{name} cannot be accepted, {len(lines)} problems:{shown}", hint=_HINT)


def _check_shape(source: Source) -> None:
    try:
        PlanDocument.model_validate(source.value)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            if problem["type"] == "too_short" and problem["input"]:
                continue  # entries that are wrong are not counted; they are said by themselves
            source.refuse(problem["loc"], _message(problem, source))


def _message(problem: ErrorDetails, source: Source) -> str:
    loc = problem["loc"]
    fields = fields_at(loc[:-1])
    if problem["type"] == "extra_forbidden":
        return f'"{loc[-1]}" is not a key of this mapping; {did_you_mean(str(loc[-1]), fields)}'
    expected = fields.get(str(loc[-1]), "") or "a mapping"
    if problem["type"] == "missing":
        return f"missing; expected {expected}"
    found = source.found[loc]
    if problem["type"] == "value_error" and found.startswith('"'):
        return str(problem["ctx"]["error"])
    return f"found {found}; expected {expected}"


def _check_names(source: Source) -> None:
    """Names that are there twice, and names of what is not there; also in entries that are wrong otherwise."""
    names = {section: _unique_names(source, (section,)) for section in ("tiers", "services", "runbooks")}
    for loc, service in _entries(source, ("services",)):
        _check_reference(source, (*loc, "tier"), service.get("tier"), "tier", names["tiers"])
        _unique_names(source, (*loc, "validation", "smoke_queries"))
    served: dict[str, int] = {}
    for loc, runbook in _entries(source, ("runbooks",)):
        service_name = runbook.get("service")
        here = (*loc, "service")
        _check_reference(source, here, service_name, "service", names["services"])
        _unique_names(source, (*loc, "steps"))
        if isinstance(service_name, str) and service_name in served:
            first = served[service_name]
            source.refuse(here, f'"{service_name}" has a runbook already (line {first}); expected one for each service')
        elif isinstance(service_name, str):
            served[service_name] = source.lines[here]


def _check_reference(source: Source, loc: Loc, name: object, kind: str, known: Mapping[str, int]) -> None:
    if isinstance(name, str) and name not in known:
        source.refuse(loc, f'there is no {kind} "{name}"; {did_you_mean(name, known)}')


def _unique_names(source: Source, loc: Loc) -> Mapping[str, int]:
    """The names in the list at `loc`, each with its line; one that comes again is refused."""
    lines: dict[str, int] = {}
    for entry_loc, entry in _entries(source, loc):
        name, here = entry.get("name"), (*entry_loc, "name")
        if isinstance(name, str) and name in lines:
            source.refuse(here, f'the name "{name}" is taken (line {lines[name]}); expected one of its own')
        elif isinstance(name, str):
            lines[name] = source.lines[here]
    return lines


def _entries(source: Source, loc: Loc) -> Iterator[tuple[Loc, Mapping[str, object]]]:
    """The mappings in the list at `loc`, as far as there are any."""
    value = source.value
    for part in loc:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, tuple) and isinstance(part, int):
            value = value[part]
        else:
            return
    if isinstance(value, tuple):
        for index, entry in enumerate(value):
            if isinstance(entry, Mapping):
                yield (*loc, index), entry


_Model = TypeVar("_Model", bound=BaseModel)


def _accepted(source: Source, text: str) -> Plan:
    """The plan from the entries that are right by themselves, so that those are checked even beside wrong ones."""
    tiers = _valid(source, "tiers", Tier)
    tier_names = {tier.name for tier in tiers}
    services = tuple(service for service in _valid(source, "services", Service) if service.tier in tier_names)
    service_names = {service.name for service in services}
    runbooks = tuple(runbook for runbook in _valid(source, "runbooks", Runbook) if runbook.service in service_names)
    lines: dict[str, int] = {}
    for loc, path in source.paths.items():
        lines.setdefault(path, source.lines[loc])
    return Plan(PLAN_VERSION, tiers, services, runbooks, text, lines)


def _valid(source: Source, section: str, model: type[_Model]) -> tuple[_Model, ...]:
    valid = []
    for _, entry in _entries(source, (section,)):
        try:
            valid.append(model.model_validate(entry))
        except ValidationError:
            continue  # said already, with the field
    return tuple(valid)
