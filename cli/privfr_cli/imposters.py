"""`privfr imposters`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privfr_cli import findings, render
from privfr_cli.run import launch, settings

if TYPE_CHECKING:
    from privfr.imposters.audit import Audit

app = typer.Typer(no_args_is_help=True, help="Train, look at and audit generators of faces of nobody.")

Text = str | None
Whole = int | None
Share = float | None
Place = Annotated[Path, typer.Argument(help="Run directory, or a generator.safetensors.")]
Seed = Annotated[int, typer.Option(help="Of what is drawn.")]


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="Experiment as TOML; flags win over it.")] = None,
    data: Annotated[
        Text, typer.Option(help="synthetic, celeba:ROOT, lfw:ROOT or a folder of identities.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory to make; default runs/DATE-TIME.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run directory; takes no other flag.")
    ] = None,
    source: Annotated[
        Text, typer.Option(help="Whom it learns from: federated (default), public or device.")
    ] = None,
    backend: Annotated[Text, typer.Option(help="How updates are added up; see privfr info.")] = None,
    clients: Annotated[Whole, typer.Option(help="How many clients.")] = None,
    rounds: Annotated[Whole, typer.Option(help="Rounds of the generator.")] = None,
    epochs: Annotated[Share, typer.Option(help="Local epochs a round.")] = None,
    batch: Annotated[Whole, typer.Option(help="Pictures in a step.")] = None,
    learning_rate: Annotated[Share, typer.Option(help="Of generator and discriminator.")] = None,
    width: Annotated[Whole, typer.Option(help="Channels of the generator's last layer.")] = None,
    public: Annotated[Whole, typer.Option(help="Public identities, for --source public.")] = None,
    test: Annotated[Whole, typer.Option(help="Identities that nobody trains on.")] = None,
    scheme: Annotated[Text, typer.Option(help="one (identity a client), many, or dirichlet.")] = None,
    per_client: Annotated[Whole, typer.Option(help="Identities a client; 0 shares out all.")] = None,
    device: Annotated[Text, typer.Option(help="auto, cpu or cuda.")] = None,
    dp: Annotated[
        Text, typer.Option(help="Differential privacy: none, example (a picture), client (a person) or both.")
    ] = None,
    target_epsilon: Annotated[
        Share, typer.Option(help="Budget of generator and model together, for each level of --dp.")
    ] = None,
    delta: Annotated[Share, typer.Option(help="Its delta; 0 to work it out.")] = None,
    workers: Annotated[Whole, typer.Option(help="Clients trained at once; 0 is one a core.")] = None,
    seed: Annotated[Whole, typer.Option(help="Of the split, the start, and everything drawn.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key, such as imposters.average=0.8."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The report alone on standard output.")] = False,
) -> None:
    """Train a generator alone, the first stage of a run; `privfr run --resume` adds the model."""
    flags = {
        "data.source": data, "data.clients": clients, "data.public": public, "data.test": test,
        "data.scheme": scheme, "data.per_client": per_client, "federation.backend": backend,
        "imposters.source": source, "imposters.rounds": rounds, "imposters.epochs": epochs,
        "imposters.batch": batch, "imposters.learning_rate": learning_rate, "imposters.width": width,
        "training.device": device, "privacy.level": dp, "privacy.epsilon": target_epsilon,
        "privacy.delta": delta, "engine.workers": workers, "seed": seed,
    }  # fmt: skip
    changes = {key: value for key, value in flags.items() if value is not None} | settings(set_ or [])
    report, directory = launch(config, out, resume, changes, imposters_only=True)
    if json:
        render.json(report)
        return
    render.generated(report, str(directory))


@app.command()
def sample(
    place: Place,
    count: Annotated[int, typer.Option(min=1, max=100_000, help="How many pictures.")] = 96,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Write a contact sheet here (.png).")] = None,
    folder: Annotated[Path | None, typer.Option(help="Write single pictures into this new folder.")] = None,
    client: Annotated[Whole, typer.Option(help="Whose generator, where each client has its own.")] = None,
) -> None:
    """Have a generator make pictures, to look at."""
    from privfr.errors import InputError

    if not (out or folder):
        raise InputError("nothing to write: give --out SHEET.png, --folder DIR or both")
    for path in filter(None, (out, folder)):
        if path.exists():
            raise InputError(f"{path}: is already there; give another name")

    import privfr

    made = privfr.Generator.load(_generator(place, client)).sample(count, seed)
    if out:
        _write(_sheet(made), out)
        render.out.print(f"contact sheet of {count} pictures: {out}", soft_wrap=True)
    if folder:
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({error.strerror}); give another place") from None
        for number, picture in enumerate(made):
            _write(picture, folder / f"{number:05d}.png")
        render.out.print(f"{count} pictures in {folder}", soft_wrap=True)


@app.command()
def audit(
    place: Place,
    data: Annotated[
        Text,
        typer.Option(help="What a generator file has learnt from. For a run: where its data lies now."),
    ] = None,
    heldout: Annotated[
        Text, typer.Option(help="Pictures of other people, of the same kind. A run knows its own.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Recogniser that judges, trained on neither; a run takes its pretrained one."),
    ] = None,
    count: Annotated[int, typer.Option(min=10, max=100_000, help="How many imposters to audit.")] = 500,
    seed: Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="The figures alone on standard output.")] = False,
) -> None:
    """See whether imposters are owners, copies, all alike or no faces; exit code 0 whatever is found."""
    from privfr.errors import InputError

    found: dict[str, Audit] = {}
    if place.is_dir():
        if heldout:
            raise InputError("--heldout: a run knows whom nobody trained on; give it with a generator file")
        judged_by, audits = _of_run(place, data, model, count, seed)
    else:
        judged_by, audits = _of_file(place, data, heldout, model, count, seed)
    for name, each in audits:
        found[name] = each
        if len(found) > 1 or name != "shared":
            render.note(f"audited {name}")
    if json:
        render.json({"judge": judged_by, "audits": {name: _flat(each) for name, each in found.items()}})
        return
    findings.show(judged_by, found)


def _of_run(
    place: Path, data: str | None, model: Path | None, count: int, seed: int
) -> tuple[str, Iterable[tuple[str, Audit]]]:
    import privfr

    found = privfr.RunAudit.of(place, data, model)
    return found.judged_by, found.audits(count, seed)


def _of_file(
    place: Path, data: str | None, heldout: str | None, model: Path | None, count: int, seed: int
) -> tuple[str, Iterable[tuple[str, Audit]]]:
    import privfr
    from privfr.imposters.pool import made_by

    if not (data and heldout and model):
        raise privfr.InputError(
            f"{place}: a generator does not say whom it has learnt from; give --data, --heldout and --model"
        )
    generator, judge = privfr.Generator.load(place), privfr.recogniser_in(model)
    training, others = (privfr.load_faces(source, judge.size) for source in (data, heldout))
    made = made_by(generator, count, seed, judge.size)
    return str(model), [("shared", privfr.audit(made, training, others, judge.embed, seed=seed))]


def _generator(place: Path, client: int | None) -> Path:
    from privfr.auditing import generators_in
    from privfr.errors import InputError

    found = generators_in(place)
    wanted = "shared" if client is None else f"client {client}"
    if wanted not in found:
        hint = "leave out --client" if "shared" in found else f"give --client, from 0 to {len(found) - 1}"
        raise InputError(f"{place}: has no generator of {wanted}; {hint}")
    return found[wanted]


def _sheet(made: Any) -> Any:
    """Lay pictures out in a grid, wider than high: uint8 [rows, columns, 3]."""
    import math

    import numpy as np

    count, height, width = made.shape[:3]
    columns = min(count, math.ceil(math.sqrt(1.5 * count)))
    rows = math.ceil(count / columns)
    cells = np.full((rows * columns, height, width, 3), 255, np.uint8)
    cells[:count] = made
    return cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, -1, 3)


def _write(picture: Any, path: Path) -> None:
    from PIL import Image

    from privfr.errors import InputError

    try:
        Image.fromarray(picture).save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written as a picture ({error})") from None


def _flat(found: Audit) -> dict[str, Any]:
    import msgspec

    return {**msgspec.to_builtins(found), "passed": found.passed}
