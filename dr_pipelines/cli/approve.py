"""`dr approve` and `dr approvals`: what waits for somebody's word, and the word. Denied by default."""

from typing import Annotated

import typer
from rich.console import Console

from dr_pipelines.cli.frame import Exit, Json, Terminal, table
from dr_pipelines.cli.opening import opened
from dr_pipelines.cli.services import who_asks
from dr_pipelines.errors import UsageError
from dr_pipelines.repository.approvals import Approval, Approvals, Decision, Standing, approvals_of_all
from dr_pipelines.timing import format_duration, format_moment

__all__ = ["approvals", "approve"]


def approve(
    execution: Annotated[str, typer.Argument(metavar="EXECUTION", help="The execution that asks.")],
    target: Annotated[
        str, typer.Option("--target", metavar="DIR", help="The target that it asks about; not needed to deny.")
    ] = "",
    deny: Annotated[bool, typer.Option("--deny", help="Deny it.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the record.")] = "",
    confirm: Annotated[
        list[str] | None, typer.Option("--confirm", metavar="NAME", help="Vouch for what the request names.")
    ] = None,
    by: Annotated[str, typer.Option("--by", help="Who answers; the user that calls it where left out.")] = "",
    as_json: Json = False,
) -> int:
    """Approve what an execution asks for, or deny it.

    An approval names the execution and the target, and is of no use for another one; it expires with the request. An
    answer is not taken back. Without --target nothing is answered: what is asked is shown, with exit code 2.
    """
    terminal = Terminal(as_json=as_json)
    with opened(terminal, needs_plan=False) as around:
        asked = Approvals(around.repository.store, execution)
        now = around.clock.wall()
        if not target and not deny:
            approval = asked.latest(now)
            if approval is not None and not as_json:
                _show_one(terminal.err, approval)
            raise UsageError("--target is missing", hint="what is approved is named: --target DIR, or --deny")
        stands = asked.answer(
            Decision.DENIED if deny else Decision.APPROVED,
            target=target,
            by=by or who_asks(),
            now=now,
            reason=reason,
            confirmed=tuple(confirm or ()),
        )
        terminal.result(_described(stands), lambda console: console.print(f"{execution}: {stands.told}"))
    return Exit.DONE


def approvals(
    everything: Annotated[bool, typer.Option("--all", help="Also what was answered or has expired.")] = False,
    as_json: Json = False,
) -> int:
    """List what waits for an approval, with what whoever decides has to know."""
    terminal = Terminal(as_json=as_json)
    with opened(terminal, needs_plan=False) as around:
        now = around.clock.wall()
        found = approvals_of_all(around.repository.store, now)
    listed = [approval for approval in found if everything or approval.standing is Standing.WAITING]

    def show(console: Console) -> None:
        if not listed:
            console.print("nothing waits for an approval")
        for approval in listed:
            if approval.standing is Standing.WAITING and approval.request is not None:
                console.print(f"{approval.execution_id} waits for {format_duration(approval.request.expires_at - now)}")
            else:
                console.print(f"{approval.execution_id}, request {approval.number}: {approval.told}")
            _show_one(console, approval)

    terminal.result({"approvals": [_described(approval) for approval in listed]}, show)
    return Exit.DONE


def _show_one(console: Console, approval: Approval) -> None:
    request = approval.request
    if request is None:
        return
    rows = [("what", f"{request.what} of {request.service}"), ("target", request.target), *request.facts.items()]
    rows += [("to be confirmed", f"--confirm {name}: {text}") for name, text in request.confirmations.items()]
    rows += [("asked", f"by {request.requested_by} at {format_moment(request.requested_at)}")]
    rows += [("expires", format_moment(request.expires_at))]
    console.print(table("", "", rows=rows), soft_wrap=False)


def _described(approval: Approval) -> dict[str, object]:
    request, answer = approval.request, approval.answer
    return {
        "execution_id": approval.execution_id,
        "number": approval.number,
        "standing": approval.standing,
        "told": approval.told,
        "request": request.model_dump(mode="json") if request is not None else None,
        "answer": answer.model_dump(mode="json") if answer is not None else None,
    }
