"""An audit of imposters as a person reads it: figures beside their control, a verdict on each question."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from privfr_cli import render

if TYPE_CHECKING:
    from privfr.imposters.audit import Audit


class _Figure(NamedTuple):
    """One line of an audit. worst: of several generators, the largest or the smallest."""

    label: str
    of: Callable[[Audit], float]
    control: Callable[[Audit], float]
    worst: Callable[[list[float]], float]
    show: Callable[[float], str]


def _plain(value: float) -> str:
    return f"{value:.3f}"


_FIGURES = (
    _Figure(
        "too like a client's people",
        lambda a: a.owners.share, lambda a: a.owners.control, max, render.percent,
    ),
    _Figure(
        "highest cosine with them, median",
        lambda a: a.owners.cosine[1], lambda a: a.owners.control_cosine[1], max, _plain,
    ),
    _Figure(
        "drawn to people learnt from, in pixels",
        lambda a: a.copies.pixels.share, lambda a: a.copies.pixels.chance, max, render.percent,
    ),
    _Figure(
        "drawn to people learnt from, in embeddings",
        lambda a: a.copies.embeddings.share, lambda a: a.copies.embeddings.chance, max, render.percent,
    ),
    _Figure(
        "replays of a picture",
        lambda a: a.copies.replays, lambda a: a.copies.control, max, render.percent,
    ),
    _Figure(
        "coverage of real faces",
        lambda a: a.variety.coverage, lambda a: a.variety.control, min, render.percent,
    ),
    _Figure(
        "mean cosine of two",
        lambda a: a.variety.cosine, lambda a: a.variety.control_cosine, max, _plain,
    ),
    _Figure(
        "Frechet distance to real faces",
        lambda a: a.realism.distance, lambda a: a.realism.control, max, _plain,
    ),
    _Figure("the same of noise", lambda a: a.realism.noise, lambda a: a.realism.control, max, _plain),
)  # fmt: skip

_VERDICTS = {
    "owners": (
        "Not their owner: no more of them are like a client's people than real strangers are.",
        "LIKE THEIR OWNER: more of them would have to be left out than of real strangers.",
    ),
    "copies": (
        "No copies found: they are not drawn to people learnt from, nor replay their pictures.",
        "COPIES: they are drawn to people learnt from more than chance allows, or replay their pictures.",
    ),
    "variety": (
        "Varied: they cover at least half of what real strangers cover.",
        "ALL ALIKE: they cover less than half of what real strangers cover.",
    ),
    "realism": (
        "Like faces: nearer to real faces than to noise.",
        "NOT LIKE FACES: as near to noise as to real faces.",
    ),
}  # fmt: skip


def show(judged_by: str, found: dict[str, Audit]) -> None:
    """Show the figures of audits, their mean and the worst of several, and a verdict on each question."""
    every = list(found.values())
    several = len(every) > 1
    whose = f" of each of {len(every)} generators, mean" if several else ""
    columns = ("", "imposters", "control", *(("worst",) if several else ()))
    render.table(
        f"{every[0].imposters} imposters{whose}", columns, [_cells(every, each) for each in _FIGURES]
    )
    render.out.print(
        "control: as many real pictures of people nobody trained on; where imposters are drawn to, chance\n"
        f"judged by {judged_by}\n",
        soft_wrap=True,
    )
    for question, words in _VERDICTS.items():
        bad = [name for name, each in found.items() if not each.passed[question]]
        names = f" ({', '.join(bad)})" if bad and several else ""
        render.out.print(f"{words[bool(bad)]}{names}", style="bold" if bad else None, soft_wrap=True)
    for line in sorted({_power(each) for each in every}):
        render.out.print(line, soft_wrap=True)


def _cells(every: list[Audit], figure: _Figure) -> list[str]:
    values, controls = ([get(each) for each in every] for get in (figure.of, figure.control))
    cells = [statistics.fmean(values), statistics.fmean(controls)]
    if len(every) > 1:
        cells.append(figure.worst(values))
    return [figure.label, *map(figure.show, cells)]


def _power(found: Audit) -> str:
    """Say what the search for copies could see."""
    copies = found.copies
    tested = [each.p for each in (copies.pixels, copies.embeddings) if each.p is not None]
    basis = (
        f"p {min(tested):.4f}, the less of two"
        if tested
        else f"{copies.people} people are too few for a test"
    )
    least = "no" if copies.catches is None else f"{render.percent(copies.catches)} of"
    return f"Copies of {copies.people} people were looked for ({basis}); {least} replays would be noticed."
