"""The repository and what surrounds it, opened for one command."""

from collections.abc import Iterator
from contextlib import contextmanager

from dr_pipelines.cli.display import Display
from dr_pipelines.cli.frame import Terminal
from dr_pipelines.errors import ConfigurationError, MissingSoftware, PlanError, RepositoryError
from dr_pipelines.lab.place import placed
from dr_pipelines.processes.seaweed import find_weed
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.runbooks.database_restore import Surroundings, surroundings
from dr_pipelines.settings import Settings, load_settings
from dr_pipelines.timing import SystemClock

__all__ = ["opened", "settled"]


@contextmanager
def opened(
    terminal: Terminal, *, repository: str | None = None, create: bool = False, needs_plan: bool = True
) -> Iterator[Surroundings]:
    """The repository, the plan, and notes and progress on standard error, while the block runs.

    With `create` an empty place becomes a repository; the lab's own always does. Where no plan is needed, one that
    cannot be accepted is told of and left out.
    """
    create = create or (repository is None and load_settings().repository is None)
    with settled(terminal, repository=repository) as settings, Display(terminal.err) as display:
        yield _surround(settings, display, create=create, needs_plan=needs_plan)


def _surround(settings: Settings, display: Display, *, create: bool, needs_plan: bool) -> Surroundings:
    clock = SystemClock()
    try:
        return surroundings(settings, display, clock=clock, progress=display.progress, create=create)
    except (ConfigurationError, PlanError, RepositoryError, UnicodeDecodeError) as error:
        if needs_plan:
            raise
        cause = error
    assert settings.repository is not None
    # Raises again where it is the repository itself that cannot be read, not only its copy of the plan.
    repository = open_repository(settings.repository, settings=settings, create=create, clock=clock)
    display.warning(f"going on without a plan: {cause}")
    return Surroundings(settings, None, repository, clock, display, display.progress)


@contextmanager
def settled(terminal: Terminal, *, repository: str | None = None) -> Iterator[Settings]:
    """This machine's settings, with a repository that answers while the block runs.

    It is `repository` where that is given, else DR_REPOSITORY, else the lab's own; that is said.
    """
    settings = load_settings()
    if repository is not None:
        settings = settings.model_copy(update={"repository": repository})
    if settings.repository is None:
        if settings.lab_repository == "s3":
            _require_lab_storage(settings)
        terminal.note(f"DR_REPOSITORY is not set: using the lab's own repository, below {settings.state_dir}")
    with placed(settings, SystemClock()) as there:
        yield there


def _require_lab_storage(settings: Settings) -> None:
    try:
        find_weed(settings)
    except MissingSoftware as error:
        raise ConfigurationError(
            "DR_REPOSITORY is not set, and the S3 service of the lab, which would take its place, is not installed",
            hint=f"set DR_REPOSITORY to a folder's path or s3://bucket/prefix; for the lab: {error.hint}",
        ) from None
