"""The only place that prints: results on standard output, progress on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from privfr.evaluation import Evaluation
    from privfr.federation import RoundReport
    from privfr.privacy.guard import Guarantee
    from privfr.report import Event, Report

# No markup: a path such as "runs/[1]" is not a style.
out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)


def json(value: Any) -> None:
    """Write a value as indented JSON, alone on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def note(line: str) -> None:
    """Say something on the side."""
    err.print(line, markup=False, soft_wrap=True)


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return "" if share is None else f"{100 * share:.1f} %"


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], *, prose: bool = False) -> None:
    """Draw a table; every column but the first is a figure, or, where they are prose, text."""
    if title:
        out.print(title, style="bold")
    drawn = Table(header_style="", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        drawn.add_column(column, justify="left" if number == 0 or prose else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    out.print(drawn)


class Watch:
    """Draws a run while it goes on: a bar a stage, a line a round. Use as `with Watch() as watch`."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        self._progress = Progress(*columns, console=err, transient=False, refresh_per_second=5)
        self._tasks: dict[str, TaskID] = {}
        self._stage = ""

    def __enter__(self) -> Watch:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event; called from several threads."""
        from privfr import report as events

        if isinstance(event, events.Stage):
            self._stage = event.name
            loss = "" if event.loss is None else f"loss {event.loss:.3f}"
            task = self._task(event.name, event.total)
            self._progress.update(task, completed=event.done, total=event.total, note=loss)
        elif isinstance(event, events.ClientTrained):
            if self._stage in self._tasks:
                who = f"client {event.client}" if event.client.isdigit() else event.client
                doing = f"{who}: step {event.done}/{event.total}, loss {event.loss:.3f}"
                self._progress.update(self._tasks[self._stage], note=doing)
        elif isinstance(event, events.RoundEnded):
            self._progress.console.print(round_line(event.report, event.eer))
        elif isinstance(event, events.Measured):
            figures = f"EER {percent(event.eer)}, AUC {event.auc:.3f}"
            self._progress.console.print(f"{event.model} model: {figures} on people it has never met")
        elif isinstance(event, events.Notice):
            self._progress.console.print(event.text, markup=False)

    def _task(self, stage: str, total: int) -> TaskID:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, note="")
        return self._tasks[stage]


def round_line(report: RoundReport, eer: float | None) -> str:
    """One round in one line."""
    loss = report.metrics.get("loss")
    parts = [
        f"round {report.round + 1:>3}",
        f"{report.survivors}/{report.clients} clients",
        "" if loss is None else f"loss {loss:.3f}",
        "" if eer is None else f"EER {percent(eer)}",
        f"up {size(report.bytes_up)}",
        f"down {size(report.bytes_down)}",
        f"{report.seconds:.1f} s",
    ]
    if report.failed:
        parts.append(f"failed: {report.failed}")
    elif report.dropped:
        lost = ", ".join(f"{client} in {phase}" for client, phase in sorted(report.dropped.items()))
        parts.append(f"dropped: {lost}")
    return "  ".join(part for part in parts if part)


def report(result: Report, directory: str) -> None:
    """Show what a run came to."""
    from privfr import report as events

    people, pictures = result.people, result.pictures
    rows = []
    for name, found in (
        ("untrained", result.untrained),
        ("pretrained (public identities)", result.pretrained),
        ("federated", result.final),
        ("centralised (upper bound)", result.centralised),
    ):
        if found is not None:
            bounds = found.intervals.get("eer")
            spread = f"{100 * bounds.low:.1f} to {100 * bounds.high:.1f} %" if bounds else ""
            rows.append(
                [name, percent(found.eer), spread, f"{found.auc:.3f}", percent(found.tar_at_far.get("1e-2"))]
            )
    if result.individual is not None:
        alone = result.individual
        spread = f"best {percent(alone.best)}, worst {percent(alone.worst)}"
        rows.insert(
            -1 if result.centralised else len(rows),
            ["individual, mean of clients", percent(alone.mean), spread, "", ""],
        )
    out.print()
    table(
        f"Verification of {people['test']} people nobody trained on ({pictures['test']} pictures)",
        ("model", "EER", "95 % interval", "AUC", "TAR at FAR 1e-2"),
        rows,
    )
    _own(result)
    up, down = sum(r.bytes_up for r in result.rounds), sum(r.bytes_down for r in result.rounds)
    clients = max(1, result.rounds[0].clients) if result.rounds else 1
    shared = f"{result.parameters:,}"
    if result.frozen:
        shared += f" of {result.parameters + result.frozen:,}"
    out.print(
        f"\n{len(result.rounds)} rounds, {clients} clients, {people['clients']} people, "
        f"{shared} parameters trained and shared"
    )
    out.print(
        f"per client: {size(up / clients)} up, {size(down / clients)} down; "
        f"{percent(result.overhead)} of the rounds' work was not training"
    )
    _phases(result)
    out.print()
    failed = sum(bool(r.failed) for r in result.rounds)
    if failed:
        out.print(
            f"{failed} of {len(result.rounds)} rounds failed and changed nothing; each line above says why"
        )
    out.print(f"server learns: {result.server_learns}. {result.trust}", soft_wrap=True)
    if "corrupt" in result.security:
        promise(result.security)
    for level in result.privacy:
        _guarantee(level)
    _imposters(result)
    if warning := events.collapse(result):
        out.print(warning, style="bold", soft_wrap=True)
    if result.stopped:
        out.print(f"stopped early: {result.stopped}", soft_wrap=True)
    if any(r.error for r in result.rounds) and not result.privacy:
        clipped = sum(r.saturated for r in result.rounds)
        worst = max(r.error for r in result.rounds)
        out.print(
            f"integer coding changed no number of a mean update by more than {worst:.1e}; "
            f"{clipped or 'no'} update{'s' if clipped != 1 else ''} had a number clipped",
            soft_wrap=True,
        )
    for line in result.discloses:
        out.print(f"also leaves the device: {line}")
    out.print(f"\nrun directory: {directory}", soft_wrap=True)


def _own(result: Report) -> None:
    """How well the clients' own people are told from strangers, by each model that a client could use."""
    if result.own is None:
        return
    models = {"at the start": result.own.start, "federated": result.own.federated}
    if result.own.individual:
        models["individual"] = result.own.individual
    rows = [
        [name, percent(each.mean), percent(each.spread), percent(each.best), percent(each.worst)]
        for name, each in models.items()
    ]
    out.print()
    title = "Each client's own people, pictures held out, against the people nobody trained on"
    table(title, ("model", "mean EER", "spread", "best", "worst"), rows)


_HOW = {
    "federated": "a generator trained over the same backend",
    "public": "a generator trained on the public identities",
    "device": "each client's own generator, which stays there",
    "real": "other clients' pictures, which no device would have",
}


def _imposters(result: Report) -> None:
    """Where the imposters came from, and what that took."""
    source = result.experiment["imposters"]["source"]
    if source == "none":
        return
    found, how = result.imposters, _HOW[source]
    if found and found.rounds:
        up, clients = sum(r.bytes_up for r in found.rounds), found.rounds[0].clients
        how += f", {len(found.rounds)} rounds, {size(up / clients)} up per client"
    elif result.experiment["imposters"]["model"]:
        how += " elsewhere, and given as a file"
    share = (
        "" if result.alike is None else f"; {percent(result.alike)} were too like their owner and left out"
    )
    out.print(f"imposters: {how}{share}", soft_wrap=True)


def _guarantee(found: Guarantee) -> None:
    """Say what a level of differential privacy promises, and what it does not."""
    budget = f" of a budget of {found.budget:g}" if found.budget else ", without a budget"
    lowest = min(found.clients)
    least = f"; the least of a client's {lowest:.2f}" if lowest < found.epsilon else ""
    out.print(
        f"\n{found.level}-level differential privacy: epsilon {found.epsilon:.2f}{budget} at delta "
        f"{found.delta:.1e}, for the run and for the worst client{least}",
        style="bold",
        soft_wrap=True,
    )
    clip = f"the clip of {found.clip:g}"
    if found.last_clip is not None:
        clip = (
            f"the clip, which went from {found.clip:g} to {found.last_clip:.3g} as it was learnt with "
            f"{percent(found.clip_share)} of each round's rho"
        )
    out.print(
        f"noise {found.noise:.3g} times {clip}; accountant {found.accountant}; two "
        f"worlds: {found.adjacency}; against {found.against}",
        soft_wrap=True,
    )
    for each in found.not_covered:
        out.print(f"not covered: {each}", soft_wrap=True)


def promise(found: dict[str, float]) -> None:
    """Say in words what masking promises, and what it takes."""
    corrupt, dropped = int(found["corrupt"]), int(found["dropped"])
    out.print(
        f"each client draws {found['neighbours']:.0f} neighbours, {found['shares']:.0f} of whom can open its "
        f"self mask or its key; it adds {found['masks']:.4g} masks; "
        f"{found['quorum']:.0f} of {found['committee']:.0f} must agree on who survived",
        soft_wrap=True,
    )
    out.print(
        f"an update stays private while no more than {corrupt} of the clients collude with the server"
        f"{_unless(found['privacy'])}; a round can lose {dropped} of them and end well"
        f"{_unless(found['correctness'])}",
        soft_wrap=True,
    )


def _unless(log2: float) -> str:
    return "" if log2 <= -999 else f", but for a probability of 2^{log2:.0f} a round"


def _phases(result: Report) -> None:
    """Where the messages, bytes and seconds of the rounds went."""
    names = list(dict.fromkeys(phase.phase for round in result.rounds for phase in round.phases))
    rows = []
    for name in names:
        found = [phase for round in result.rounds for phase in round.phases if phase.phase == name]
        lost = sum(where == name for round in result.rounds for where in round.dropped.values())
        rows.append(
            [
                name,
                f"{sum(p.messages_up for p in found):,}",
                size(sum(p.bytes_up for p in found)),
                size(sum(p.bytes_down for p in found)),
                f"{sum(p.client_seconds for p in found):.2f} s",
                f"{sum(p.server_seconds for p in found):.2f} s",
                str(lost),
            ]
        )
    columns = ("phase", "answers", "up", "down", "clients' CPU", "server", "dropped")
    out.print()
    table("All rounds, all clients, training left out", columns, rows)


def evaluation(name: str, found: Evaluation, models: dict[str, Evaluation]) -> None:
    """Show how well a model, and those it is compared with, recognise people."""
    listed = found.accuracy is not None
    columns = ["model", "EER", "95 % interval", "AUC", *(f"TAR@{far}" for far in found.tar_at_far)]
    if listed:
        columns[1:1] = ["accuracy", "95 % interval"]
    rows = [_row(label, each, listed) for label, each in {name: found, **models}.items()]
    table(f"{found.genuine:,} genuine and {found.impostor:,} impostor pairs", columns, rows)
    search = found.identification
    if search is not None:
        tpir = ", ".join(f"{percent(value)} at FPIR {name}" for name, value in search.tpir_at_fpir.items())
        out.print(
            f"search among {search.enrolled} enrolled people: rank 1 {percent(search.rank1)} "
            f"of {search.probes} probes"
            + (f"; with {search.strangers} strangers' pictures, TPIR {tpir}" if tpir else "")
        )


def _row(label: str, found: Evaluation, listed: bool) -> list[str]:
    def bounds(name: str) -> str:
        interval = found.intervals.get(name)
        return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}" if interval else ""

    cells = [label, percent(found.eer), bounds("eer"), f"{found.auc:.3f}"]
    if listed:
        cells[1:1] = [f"{100 * (found.accuracy or 0):.2f} %", bounds("accuracy")]
    return cells + [percent(value) for value in found.tar_at_far.values()]


def generated(result: Report, directory: str) -> None:
    """Show what the training of a generator came to."""
    _imposters(result)
    out.print(f"server learns: {result.server_learns}. {result.trust}", soft_wrap=True)
    for level in result.privacy:
        _guarantee(level)
    if result.stopped:
        out.print(f"stopped early: {result.stopped}", soft_wrap=True)
    out.print(f"\nlook at it: privfr imposters sample {directory} --out sheet.png", soft_wrap=True)
    out.print(f"train the model: privfr run --resume {directory}", soft_wrap=True)
