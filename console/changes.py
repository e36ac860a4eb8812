"""The commands that show and change who gets what: on this machine in the ledger, in a cluster in its Experiment.

Invariant: a change goes to a cluster only if the command line or CONTENDER_EXPERIMENT_RESOURCE names one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table as Grid

from console import epochs
from console.errors import CommandError
from console.home import Home
from console.state import State, await_everywhere, cluster_state, insist, ledger_state
from router.epoch import CHAMPION, Epoch

DEFAULT_GRAPH = Path("manifests/base/seldondeployment.yaml")

HomeOption = Annotated[Path, typer.Option("--home", envvar="CONTENDER_HOME", help="State of the server: ledger, spool, epoch.")]
TestOption = Annotated[str | None, typer.Option("--test", help="The experiment, where the ledger holds several.")]
GraphOption = Annotated[Path, typer.Option("--graph", help="The SeldonDeployment's manifest.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the epoch for ever.")]
NamespaceOption = Annotated[str | None, typer.Option("--namespace", "-n", help="In a cluster: the Experiment's namespace.")]
ContextOption = Annotated[str | None, typer.Option("--context", help="In a cluster: the kubeconfig's context.")]
ExperimentOption = Annotated[
    str | None,
    typer.Option("--experiment", envvar="CONTENDER_EXPERIMENT_RESOURCE", help="In a cluster: the Experiment's name."),
]
PodsOption = Annotated[
    str | None, typer.Option("--pods", help="In a cluster: the engines' pods by label (seldon-app=EXPERIMENT-main).")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Seconds to wait for every server.", min=0)]


def share(
    here: typer.Context,
    value: Annotated[str | None, typer.Argument(help="The new share, such as 25%; nothing shows the current one.")] = None,
    reason: ReasonOption = "",
    arm: Annotated[str, typer.Option(help="The challenger meant.")] = "challenger",
    wait: Annotated[bool, typer.Option("--wait", help="Return once every server has taken it over.")] = False,
    timeout: TimeoutOption = 30.0,
    retry: Annotated[bool, typer.Option("--retry", help="Set it even if somebody else changes something meanwhile.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the epoch record.")] = False,
    test: TestOption = None,
    home: HomeOption = Path("var"),
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    experiment: ExperimentOption = None,
    pods: PodsOption = None,
) -> None:
    """Show the challenger's share of the customers, or set it. Running servers take it over within a second."""
    with _state(here, home, test, namespace, context, experiment, pods) as state:
        if value is None:
            epoch = state.current()
        else:
            points = epochs.basis_points(value)

            def change() -> Epoch:
                return state.set_share(arm, points, reason or f"share {value}")

            epoch = insist(change) if retry else change()
        _show(epoch, as_json=as_json)
        if value is None:
            return
        if wait:
            await_everywhere(state, epoch, timeout)
        if not as_json and (note := state.note()):
            typer.echo(note)


def rollback(
    here: typer.Context,
    reason: ReasonOption = "rolled back",
    arm: Annotated[str, typer.Option(help="The challenger meant.")] = "challenger",
    timeout: TimeoutOption = 30.0,
    test: TestOption = None,
    home: HomeOption = Path("var"),
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    experiment: ExperimentOption = None,
    pods: PodsOption = None,
) -> None:
    """Take the challenger from everybody (share 0%), and return once every server that is ready has done so."""
    with _state(here, home, test, namespace, context, experiment, pods) as state:
        epoch = insist(lambda: _without_share(state, arm, reason))
        _show(epoch)
        await_everywhere(state, epoch, timeout)
        typer.echo(state.note() or "every server has taken it over")


def kill(
    here: typer.Context,
    reason: ReasonOption = "kill switch",
    test: TestOption = None,
    home: HomeOption = Path("var"),
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    experiment: ExperimentOption = None,
) -> None:
    """Give everybody the champion, at once and until `revive`; shares stay as they are."""
    with _state(here, home, test, namespace, context, experiment) as state:
        _show(insist(lambda: _switched(state, reason, kill=True)))


def revive(
    here: typer.Context,
    reason: ReasonOption = "revived",
    test: TestOption = None,
    home: HomeOption = Path("var"),
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    experiment: ExperimentOption = None,
) -> None:
    """Take the kill switch back: exactly the customers who had the challenger get it again."""
    with _state(here, home, test, namespace, context, experiment) as state:
        _show(_switched(state, reason, kill=False))


def shadow(
    here: typer.Context,
    to: Annotated[
        Literal["on", "off"], typer.Argument(metavar="on|off", help="Whether the arm that did not serve scores the rows too.")
    ],
    reason: ReasonOption = "",
    test: TestOption = None,
    home: HomeOption = Path("var"),
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    experiment: ExperimentOption = None,
) -> None:
    """Let the other arm score every row too, after its answer has left; both scores are kept as a pair."""
    with _state(here, home, test, namespace, context, experiment) as state:
        _show(_switched(state, reason or f"shadow {to}", shadow=to == "on"))


def new_test(
    here: typer.Context,
    reason: Annotated[str, typer.Option(help="Why; kept in the epoch for ever.")],
    aa: Annotated[bool, typer.Option("--aa", help="Let both arms be the champion's bundle: a test of the testing.")] = False,
    graph: GraphOption = DEFAULT_GRAPH,
    home: HomeOption = Path("var"),
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    experiment: ExperimentOption = None,
) -> None:
    """Begin a new test on the bundles and rules as they are now: same share, fresh salt, no evidence from before."""
    from console.serve import declaration_for, served_digests
    from serving.graph import load_deployment

    deployment = load_deployment(graph)
    declared = declaration_for(graph, deployment, None)
    digests, decision = served_digests(deployment)
    with _state(here, home, declared.test, namespace, context, experiment) as state:
        _show(state.begin_test(declared, digests, decision, reason, aa=aa))


def history(
    here: typer.Context,
    test: TestOption = None,
    home: HomeOption = Path("var"),
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    experiment: ExperimentOption = None,
) -> None:
    """List every epoch: who changed what, when and why."""
    with _state(here, home, test, namespace, context, experiment) as state:
        found = state.history()
        grid = Grid("epoch", "at", "by", "salt", "shares", "reason", title=f"test {found[-1].test}" if found else None)
        for each in found:
            at = f"{each.at[:10]} {each.at[11:19]}Z"
            grid.add_row(str(each.epoch), at, each.actor, each.salt, shares(each), each.reason)
        Console().print(grid)
        if note := state.note():
            typer.echo(note, err=True)


def shares(epoch: Epoch) -> str:
    """Return each arm's share as text."""
    return ", ".join(f"{arm} {epoch.share(arm) / 100:g}%" for arm in (CHAMPION, *epoch.arms))


def _switched(state: State, reason: str, **flag: bool) -> Epoch:
    """Return the epoch with one flag set; it is the current one if it is so already."""
    ((name, value),) = flag.items()
    epoch = state.current()
    return epoch if getattr(epoch, name) == value else state.switch(reason, **flag)


def _without_share(state: State, arm: str, reason: str) -> Epoch:
    epoch = state.current()
    return epoch if arm in epoch.arms and not epoch.share(arm) else state.set_share(arm, 0, reason)


def _state(
    here: typer.Context,
    home: Path,
    test: str | None,
    namespace: str | None,
    context: str | None,
    experiment: str | None,
    pods: str | None = None,
) -> AbstractContextManager[State]:
    """Return the state meant: of a cluster if --namespace, --context or --experiment names one, else of the home's ledger.

    Raises CommandError if both are named, since a change in the wrong place is worse than none.
    """
    if (namespace, context, experiment) == (None, None, None):
        if pods is not None:
            raise CommandError("--pods is of a cluster; name its namespace with --namespace")
        return ledger_state(Home(home), test)
    for name in ("home", "test"):
        source = here.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise CommandError(
                f"--{name} is of a ledger, and --namespace, --context or --experiment are of a cluster; give one"
            )
    return cluster_state(experiment, namespace=namespace, context=context, pods=pods, home=Home(home))


def _show(epoch: Epoch, *, as_json: bool = False) -> None:
    if as_json:
        typer.echo(epoch.to_json())
        return
    grid = Grid.grid(padding=(0, 2))
    for name, value in (
        ("test", epoch.test),
        ("epoch", str(epoch.epoch)),
        ("shares", shares(epoch) + (" (killed: everybody gets the champion)" if epoch.kill else "")),
        ("salt", epoch.salt),
        *([("shadow", "on")] if epoch.shadow else []),
        *([("A/A test", "both arms are the champion's bundle")] if any(epochs.is_aa(epoch, arm) for arm in epoch.arms) else []),
        ("set by", f"{epoch.actor}, {epoch.at}"),
        ("reason", epoch.reason),
    ):
        grid.add_row(name, value)
    Console().print(grid)
