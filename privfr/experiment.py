"""An experiment: everything a run depends on, as one frozen tree of plain values.

A TOML file and the command line's flags give the same tree, and the tree is written into the run
directory, so that a run can be repeated from it. An unknown key is an error that names the nearest.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import tomli_w

from privfr.cores import usable_cores
from privfr.errors import InputError

__all__ = [
    "Coding",
    "Data",
    "Engine",
    "Experiment",
    "Federation",
    "Imposters",
    "Masking",
    "Method",
    "Model",
    "Pretraining",
    "Trainable",
    "Training",
    "load_experiment",
    "parse_value",
]

Positive = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
# Bounded above so that an infinite rate is refused here and not noticed rounds later.
Above0 = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
AtLeast0 = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whose faces, and how they are dealt out. Identities are disjoint between the three parts.

    source: "synthetic[:identities=,images=,seed=]", "celeba:ROOT", "lfw:ROOT" or a folder.  size: side of
    the square picture in pixels, or [height, width].  public: identities to pretrain on; test: identities
    nobody trains on; both counts.  scheme: "one" identity a client, "many" (`per_client` each, 0 for all
    that are left), or "dirichlet" over images with concentration `alpha`.
    """

    source: str = "synthetic:identities=180,images=16"
    size: tuple[Positive, Positive] = (64, 64)
    clients: Annotated[int, msgspec.Meta(ge=2)] = 8
    public: Count = 0
    test: Annotated[int, msgspec.Meta(ge=2)] = 20
    scheme: Literal["one", "many", "dirichlet"] = "many"
    per_client: Count = 0
    alpha: Above0 = 0.5
    min_images: Positive = 2
    holdout: Count = 0
    download: bool = False


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which network. dim: width of its embedding, 0 for the network's own."""

    backbone: str = "small"
    dim: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0


Trainable = Literal["all", "last", "adapter", "norms"]


class Method(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is learnt from a client's faces. name: "supervised" or "unsupervised".

    Of the supervised method: head, scale, margin of the loss.  nobody: cosine above which a face is one of
    the client's people, a class of its own beside them; 0 for none, or for 0.35 where a client has one person
    or imposters, which need it (sphereface2 does not).  restart: give the head new class means at the start
    of every round instead of keeping it.

    Of the unsupervised one: variant of the loss.  neighbours: similar pictures, and dissimilar ones, that a
    picture is compared with.  similar, dissimilar: cosines above and below which they are; where too few are,
    the pictures' own decide.  temperature: what differences of cosines are divided by.  augmentation:
    strength of the chance changes of each view.

    Of both: trainable: part of the network that clients train and
    share: "last", its last linear layer; "adapter", a low-rank residual of this rank on the embedding;
    "norms", the gains and biases of its GroupNorms. The rest stays as it was pretrained.
    """

    name: str = "supervised"
    head: Literal["cosface", "arcface", "softmax", "sphereface2"] = "cosface"
    scale: Above0 = 30.0
    margin: AtLeast0 = 0.35
    nobody: Share = 0.0
    restart: bool = False
    variant: Literal["siamese", "autoencoder", "contrastive"] = "contrastive"
    neighbours: Positive = 2
    similar: Annotated[float, msgspec.Meta(gt=-1, lt=1)] = 0.6
    dissimilar: Annotated[float, msgspec.Meta(gt=-1, lt=1)] = 0.2
    temperature: Above0 = 0.05
    augmentation: AtLeast0 = 1.0
    trainable: Trainable = "all"
    rank: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 16


class Imposters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Made-up faces, which a client contrasts its people with. See `privfr.imposters`.

    source: of the faces: "federated", a generator whose weights are averaged over the model's own backend,
    while each client's discriminator stays with it; "public", one trained on the public identities; "device",
    each client's own, of its own pictures; "real", no generator but other clients' pictures, to measure by;
    "none".  model: file of a generator to take instead of training one.  ratio: imposters for each picture of
    a client.  rounds, epochs, batch, learning_rate: of the generator's training, as `Federation` and
    `Training` have them; in one place as many pictures are gone over as by all clients.  average: share that
    a moving average of the generator keeps each round.  width, latent: of the network.
    """

    source: Literal["none", "federated", "public", "device", "real"] = "none"
    model: str = ""
    ratio: Above0 = 2.0
    rounds: Positive = 40
    epochs: Above0 = 0.5
    batch: Positive = 8
    learning_rate: Above0 = 4e-3
    average: Share = 0.8
    width: Annotated[int, msgspec.Meta(ge=4, le=512)] = 16
    latent: Annotated[int, msgspec.Meta(ge=1, le=512)] = 64

    @property
    def trained(self) -> bool:
        """Whether a generator is trained."""
        return self.source in ("federated", "public", "device") and not self.model


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a client trains between two messages, with a fresh optimiser each time.

    epochs: passes over its pictures; of the last one a part, drawn anew each time, where it is not whole.
    betas: of AdamW, shares of its means that it keeps each step.  decay: learning rate at the end of the run
    as a share of the first, reached along a half cosine.  flip: mirror half of the pictures.  shift: pixels a
    picture is moved by at most.  dropout: share of the features before the embedding that are dropped, each
    picture's own.  threads: computing threads of one client, fixed, since the last bit of a sum depends on
    them.
    """

    epochs: Above0 = 1.0
    batch: Positive = 32
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[Share, Share] = (0.9, 0.999)
    learning_rate: Above0 = 2e-3
    weight_decay: AtLeast0 = 0.0
    decay: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.05
    flip: bool = True
    shift: Annotated[int, msgspec.Meta(ge=0, le=16)] = 1
    dropout: Share = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive = 1


class Pretraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a network is trained in one place: the common start, and the centralised baseline.

    By the clients' method: where that reads no label, neither does this.
    model: file of a recogniser to start from instead.  epochs: on the public identities; 0 for a random
    start. The baseline takes as many as a client does in all rounds.  weight_decay, shift, dropout,
    learning_rate, decay: as in `Training`.  scale, margin: of the head; 0 for the method's scale. The margin
    is reached from 0 over the first `warmup` of the epochs.
    """

    model: str = ""
    epochs: Count = 0
    batch: Positive = 32
    learning_rate: Above0 = 1e-3
    weight_decay: AtLeast0 = 0.0
    decay: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.01
    shift: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0
    dropout: Share = 0.0
    scale: AtLeast0 = 0.0
    margin: AtLeast0 = 0.2
    warmup: Share = 0.3


class Coding(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Updates as whole numbers, which every backend that hides them adds up. See `privfr.coding`.

    bits: precision of one client's number, sign included, 2 to 24; 0 for what the backend needs: 16, or
    float32 for those that add up in clear.  clip: largest |change| of a weight in a round that is not
    clipped.  max_weight: a client's pictures above this do not count; 0 for the most that any client has,
    which tells everybody that number.  rounding: "stochastic" is unbiased and coarser.  rotate: flatten
    outliers with a random rotation, so that a smaller clip will do.
    """

    bits: Annotated[int, msgspec.Meta(ge=0, le=24)] = 0
    clip: Annotated[float, msgspec.Meta(ge=1e-9, le=1e9)] = 0.25
    max_weight: Annotated[int, msgspec.Meta(ge=0, le=2**32)] = 0
    rounding: Literal["nearest", "stochastic"] = "nearest"
    rotate: bool = False


class Masking(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What backend `masking` promises, from which its graph follows. See docs/threat-model.md.

    corruption: share of the clients that may collude with the server.  dropout: share that may be lost in a
    round.  neighbours, shares: raw numbers instead, refused where they break the promise; 0 to derive them.
    """

    corruption: Share = 0.05
    dropout: Share = 0.05
    neighbours: Count = 0
    shares: Count = 0


class Privacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Differential privacy. See docs/privacy.md for what each level promises to whom.

    level: "example" guards every picture against everybody but its own device, "client" all pictures of a
    client together; "both" each with a budget of its own.  epsilon: the budget of a level, 0 for none, which
    needs its noise.  delta: 0 for a tenth of one over the clients, at most 1e-5.  accountant: of the example
    level. example_clip: largest L2 norm of one picture's gradient.  client_clip: of a client's update in a
    round.  clip_share: of each round's rho, goes into learning that clip, which then is the first round's
    only; 0 for a fixed one.  clip_quantile: share of the updates that the learnt clip is not to shorten.
    example_noise, client_noise: standard deviation of the noise, in clips; 0 to work out what the planned
    rounds need.  corruption: share of the clients that may collude, whose noise does not count.  dropout:
    share that may be lost in a round; one that loses more has no sum.
    """

    level: Literal["none", "example", "client", "both"] = "none"
    epsilon: AtLeast0 = 8.0
    delta: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    accountant: Literal["prv", "rdp"] = "prv"
    example_clip: Above0 = 1.0
    example_noise: AtLeast0 = 0.0
    client_clip: Above0 = 1.0
    clip_share: Share = 0.0
    clip_quantile: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    client_noise: AtLeast0 = 0.0
    corruption: Share = 0.05
    dropout: Share = 0.05

    @property
    def example(self) -> bool:
        """Whether the example level is on."""
        return self.level in ("example", "both")

    @property
    def client(self) -> bool:
        """Whether the client level is on."""
        return self.level in ("client", "both")


class Federation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The federation. rounds: how many.  threshold: fewest survivors for an aggregate, 0 for two thirds or
    what the backend needs.
    momentum: share of the last step that the next one repeats (FedAvgM), 0 for plain FedAvg.  evaluate: who
    measures the model after each round, "auto" for the server where the backend shows it one.
    """

    rounds: Positive = 20
    backend: str = "masking"
    threshold: Count = 0
    momentum: Share = 0.6
    evaluate: Literal["auto", "server", "member"] = "auto"


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where clients run. workers: clients at once, 0 for one a core.  cores: computing threads of what is
    trained and measured outside of clients, 0 for all.  losses: share of messages lost, by seed.  phases:
    kinds of the server's messages these hit ("begin", "result", ...), all if empty.
    """

    name: Literal["local"] = "local"
    workers: Count = 0
    cores: Count = 0
    losses: Share = 0.0
    phases: tuple[str, ...] = ()


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a run depends on. seed: of the split, the start, the order of pictures, the losses.

    baselines: what else to train for comparison, "individual" (every client alone) and "centralised".
    """

    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    data: Data = Data()
    model: Model = Model()
    method: Method = Method()
    imposters: Imposters = Imposters()
    training: Training = Training()
    pretraining: Pretraining = Pretraining()
    federation: Federation = Federation()
    coding: Coding = Coding()
    masking: Masking = Masking()
    privacy: Privacy = Privacy()
    engine: Engine = Engine()
    baselines: tuple[Literal["individual", "centralised"], ...] = ()

    def digest(self) -> bytes:
        """BLAKE2b-256 of what the members of a run agree on: all but the engine and the baselines."""
        agreed = msgspec.structs.replace(self, engine=Engine(), baselines=())
        return hashlib.blake2b(msgspec.json.encode(agreed), digest_size=32).digest()

    def options(self, table: str) -> dict[str, Any]:
        """Give a backend's own table; empty for a backend without one."""
        return msgspec.structs.asdict(getattr(self, table)) if table else {}

    def resolved(
        self, fewest: int = 2, bits: int = 0, evaluator: Literal["server", "member"] = "server"
    ) -> Experiment:
        """Fill in what 0 leaves to the machine, so that the tree says what was really run.

        fewest: lowest threshold that the backend can keep.  bits: what the backend needs of a coding.
        evaluator: who measures the model unless the experiment says.
        Raises `InputError` for a threshold of 1, or above the number of clients.
        """
        cores = usable_cores()
        clients = self.data.clients
        engine, federation = self.engine, self.federation
        if federation.threshold == 1:
            raise InputError("federation.threshold: 1 would hand out a single client's update; at least 2")
        if federation.threshold > clients:
            raise InputError(f"federation.threshold: {federation.threshold} for {clients} clients; lower it")
        return msgspec.structs.replace(
            self,
            engine=msgspec.structs.replace(
                engine, workers=min(engine.workers or cores, clients), cores=engine.cores or cores
            ),
            federation=msgspec.structs.replace(
                federation,
                threshold=federation.threshold or max(2, fewest, -(-2 * clients // 3)),
                evaluate=evaluator if federation.evaluate == "auto" else federation.evaluate,
            ),
            coding=msgspec.structs.replace(self.coding, bits=self.coding.bits or bits),
            privacy=self._privacy(),
        )

    def _privacy(self) -> Privacy:
        wanted, clients = self.privacy, self.data.clients
        self._check_clip()
        if wanted.level == "none":
            return wanted
        if wanted.delta >= 1 / clients:
            raise InputError(
                f"privacy.delta: {wanted.delta:g} is not below one in {clients} clients, and would allow one "
                "of them to be given away whole; lower it"
            )
        for level in ("example", "client"):
            if getattr(wanted, level) and not (wanted.epsilon or getattr(wanted, f"{level}_noise")):
                raise InputError(f"privacy.epsilon: 0 is no budget; raise it, or set privacy.{level}_noise")
        found = msgspec.structs.replace(wanted, delta=wanted.delta or min(1e-5, 0.1 / clients))
        if wanted.example:
            self._check_example(found)
        return found

    def _check_example(self, found: Privacy) -> None:
        """Refuse what the example level's accountants cannot work out, or would call infinite."""
        if not (found.example_noise == 0 or 0.01 <= found.example_noise <= 500):
            raise InputError(
                f"privacy.example_noise: {found.example_noise:g} is not between 0.01 and 500 times the clip"
            )
        if found.example_clip < 1e-6:
            raise InputError(f"privacy.example_clip: {found.example_clip:g} is below 1e-6; raise it")
        if found.accountant == "prv" and found.delta < 1e-12:
            raise InputError(
                f"privacy.delta: {found.delta:g} is less than PRV's rounding, so raise it to 1e-12, or set "
                'privacy.accountant to "rdp"'
            )

    def _check_clip(self) -> None:
        """Refuse a clip that nobody uses, or whose part of an update would not be sent whole."""
        wanted, coding = self.privacy, self.coding
        if wanted.clip_share and not wanted.client:
            raise InputError(
                f"privacy.clip_share: {wanted.clip_share:g} of the client level's budget, and privacy.level "
                f'is "{wanted.level}"; set that to "client" or "both", or leave clip_share at 0'
            )
        bit = math.sqrt(wanted.clip_share) * wanted.client_clip
        if bit > coding.clip and not coding.rotate:  # which spreads it out
            raise InputError(
                f"privacy.clip_share: {wanted.clip_share:g} puts a number of {bit:.3g} beside each update, "
                f"and coding.clip cuts off at {coding.clip:g}; lower it or raise coding.clip"
            )

    def to_toml(self) -> str:
        """Write the tree as TOML that `load_experiment` reads back."""
        return tomli_w.dumps(msgspec.to_builtins(self))


def load_experiment(path: str | Path | None = None, changes: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment from a TOML file, then apply changes such as {"data.clients": 40}.

    Raises `InputError` naming the file and key for an unreadable file, an unknown key or a wrong value.
    """
    tree: dict[str, Any] = _read(Path(path)) if path else {}
    origin = str(path) if path else "experiment"
    _check_keys(tree, Experiment, origin, "")
    for key, value in (changes or {}).items():
        _set(tree, key, value)
    _check_keys(tree, Experiment, origin, "")
    if isinstance(size := tree.get("data", {}).get("size"), int):
        tree["data"]["size"] = (size, size)
    try:
        found = msgspec.convert(tree, Experiment)
    except msgspec.ValidationError as error:
        raise InputError(f"{origin}: {_readable(error)}") from None
    _check_level(tree.get("privacy", {}), origin)
    return found


def parse_value(text: str) -> Any:
    """Read one value as TOML writes it; a bare word is a string."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if len(found) == 1 else text


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: cannot be read ({reason}); give a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


def _check_keys(tree: Mapping[str, Any], node: type[msgspec.Struct], origin: str, prefix: str) -> None:
    known = {field.name: field.type for field in msgspec.structs.fields(node)}
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
            raise InputError(f"{origin}: unknown key {prefix}{key}; {hint}")
        child = known[key]
        if isinstance(child, type) and issubclass(child, msgspec.Struct):
            if not isinstance(value, Mapping):
                raise InputError(f"{origin}: {prefix}{key} is a table, not {value!r}")
            _check_keys(value, child, origin, f"{prefix}{key}.")


def _check_level(privacy: Mapping[str, Any], origin: str) -> None:
    """Refuse a budget of no level: who sets one and forgets the level would train without any noise.

    The two shares alone may be another's: --corruption and --dropout are masking's, too.
    """
    idle = [key for key in privacy if key not in ("corruption", "dropout")]
    if idle and "level" not in privacy:
        raise InputError(
            f"{origin}: privacy.{idle[0]} is set and privacy.level (--dp) is not, so that nothing would be "
            f"private; set that to {', '.join(_choices('privacy.level'))}"
        )


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *tables, key = dotted.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise InputError(f"{dotted}: {table} is a value, not a table")
    tree[key] = value


def _readable(error: msgspec.ValidationError) -> str:
    """Turn "Invalid enum value 'x' - at `$.data.scheme`" round, key first, and add what is allowed."""
    message, _, where = str(error).partition(" - at `$")
    message = message[:1].lower() + message[1:].replace("`", "").replace("enum value", "value")
    path = where.strip("`.")
    allowed = _choices(path.split("[")[0]) if "invalid value" in message else ()
    near = difflib.get_close_matches(message.split("'")[1], allowed, 1, 0.5) if "'" in message else []
    meant = f"did you mean {near[0]!r}? " if near else ""
    hint = f"; {meant}choose from {', '.join(allowed)}" if allowed else ""
    return f"{path}: {message}{hint}" if path else message


def _choices(path: str) -> tuple[str, ...]:
    """Literals that the key at a dotted path takes, or the items of a tuple of them."""
    node: Any = Experiment
    for key in path.split("."):
        node = next(field.type for field in msgspec.structs.fields(node) if field.name == key)
    return tuple(
        str(value)
        for kind in (node, *get_args(node))
        if get_origin(kind) is Literal
        for value in get_args(kind)
    )
