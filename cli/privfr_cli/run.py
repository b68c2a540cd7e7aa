"""`privfr run`."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from privfr_cli import render

Text = str | None
Whole = int | None


def command(
    config: Annotated[Path | None, typer.Option(help="Experiment as TOML; flags win over it.")] = None,
    data: Annotated[
        Text, typer.Option(help="synthetic, celeba:ROOT, lfw:ROOT or a folder of identities.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory to make; default runs/DATE-TIME.")] = None,
    download: Annotated[
        bool | None, typer.Option("--download", help="Fetch CelebA or LFW where missing.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run directory; takes no other flag.")
    ] = None,
    method: Annotated[Text, typer.Option(help="What is learnt: supervised or unsupervised.")] = None,
    imposters: Annotated[
        Text,
        typer.Option(
            help="Made-up faces as contrast; where they come from: federated, public, device, real or none."
        ),
    ] = None,
    backend: Annotated[
        Text,
        typer.Option(
            help="How updates are added up: masking, bfv, ckks, trusted, plain or others; see privfr info."
        ),
    ] = None,
    engine: Annotated[Text, typer.Option(help="Where clients run: local.")] = None,
    clients: Annotated[Whole, typer.Option(help="How many clients.")] = None,
    rounds: Annotated[Whole, typer.Option(help="How many rounds.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Local epochs a round.")] = None,
    public: Annotated[Whole, typer.Option(help="Identities to pretrain on.")] = None,
    test: Annotated[Whole, typer.Option(help="Identities to test on, whom nobody trains on.")] = None,
    scheme: Annotated[Text, typer.Option(help="one (identity a client), many, or dirichlet.")] = None,
    per_client: Annotated[Whole, typer.Option(help="Identities a client; 0 shares out all.")] = None,
    start: Annotated[
        Text, typer.Option(help="Recogniser to start from (.safetensors), in place of pretraining.")
    ] = None,
    pretrain: Annotated[Whole, typer.Option(help="Epochs of pretraining on the public identities.")] = None,
    backbone: Annotated[Text, typer.Option(help="small, resnet, mobilefacenet, sphere20, sphere64.")] = None,
    size: Annotated[Whole, typer.Option(help="Side of the square pictures, in pixels.")] = None,
    head: Annotated[Text, typer.Option(help="cosface, arcface, softmax or sphereface2.")] = None,
    trainable: Annotated[
        Text, typer.Option(help="What clients train and share: all, last (layer), adapter or norms.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of local training.")] = None,
    device: Annotated[Text, typer.Option(help="auto, cpu or cuda.")] = None,
    corruption: Annotated[
        float | None,
        typer.Option(help="Share of clients that may collude with the server (masking, --dp client)."),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(help="Share of clients that may be lost in a round (masking, --dp client)."),
    ] = None,
    dp: Annotated[
        Text, typer.Option(help="Differential privacy: none, example (a picture), client (a person) or both.")
    ] = None,
    target_epsilon: Annotated[
        float | None, typer.Option(help="Privacy budget of all rounds, for each level of --dp.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Its delta; 0 to work it out.")] = None,
    losses: Annotated[float | None, typer.Option(help="Lose this share of messages, by seed.")] = None,
    workers: Annotated[
        Whole, typer.Option(help="Clients trained at once; 0 is one a core, 1 is serial.")
    ] = None,
    seed: Annotated[Whole, typer.Option(help="Of the split, the start, and everything drawn.")] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Also train individual and/or centralised models; repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key, such as training.batch=16."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The report alone on standard output.")] = False,
) -> None:
    """Train a face model over many clients and see how well it recognises people it has never met."""
    flags = {
        "data.source": data, "data.download": download, "data.clients": clients, "data.public": public,
        "data.test": test, "data.scheme": scheme, "data.per_client": per_client, "data.size": size,
        "model.backbone": backbone, "method.name": method, "imposters.source": imposters, "method.head": head,
        "method.trainable": trainable, "training.epochs": epochs,
        "training.learning_rate": learning_rate, "training.device": device, "pretraining.epochs": pretrain,
        "pretraining.model": start,
        "federation.rounds": rounds, "federation.backend": backend, "engine.name": engine,
        "masking.corruption": corruption, "masking.dropout": dropout, "privacy.corruption": corruption,
        "privacy.dropout": dropout, "privacy.level": dp, "privacy.epsilon": target_epsilon,
        "privacy.delta": delta, "engine.workers": workers,
        "engine.losses": losses, "seed": seed, "baselines": baseline or None,
    }  # fmt: skip
    changes = {key: value for key, value in flags.items() if value is not None} | settings(set_ or [])
    report, directory = launch(config, out, resume, changes)
    if json:
        render.json(report)
        return
    render.report(report, str(directory))


def settings(pairs: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE pairs. Raises `InputError` for what is none."""
    from privfr.errors import InputError
    from privfr.experiment import parse_value

    changes = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {pair}: write KEY=VALUE, such as training.batch=16")
        changes[key.strip()] = parse_value(value.strip())
    return changes


def launch(
    config: Path | None,
    out: Path | None,
    resume: Path | None,
    changes: dict[str, Any],
    *,
    imposters_only: bool = False,
) -> tuple[Any, Path]:
    """Begin or resume a run, showing its progress; gives its report and its directory."""
    from privfr.errors import InputError
    from privfr.experiment import load_experiment

    if resume and (config or out or changes):
        raise InputError("--resume: goes on with the run's own experiment and takes no other flag")
    experiment = None if resume else load_experiment(config, changes)
    if experiment and imposters_only and experiment.imposters.source == "none":
        experiment = load_experiment(config, changes | {"imposters.source": "federated"})
    directory = resume or out or _free()

    import privfr

    try:
        with render.Watch() as watch:
            if experiment is None:
                return privfr.resume(directory, watch, imposters_only=imposters_only), directory
            return privfr.run(experiment, directory, watch, imposters_only=imposters_only), directory
    except KeyboardInterrupt:
        begun = (directory / "report.json").exists()
        command = "imposters train" if imposters_only else "run"
        render.note(
            f"\ninterrupted; go on with: privfr {command} --resume {directory}" if begun else "\ninterrupted"
        )
        raise typer.Exit(130) from None


def _free() -> Path:
    """Name a run directory that is not there yet."""
    name = time.strftime("%Y%m%d-%H%M%S")
    places = (Path("runs") / (f"{name}-{number}" if number else name) for number in itertools.count())
    return next(place for place in places if not place.exists())
