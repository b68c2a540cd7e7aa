"""The local loop that every method and every baseline shares, and the `Learner` a member trains with.

All randomness of training comes from one generator per (seed, client, round), so that a round can be
repeated to the bit after a crash, on any worker, in any order.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privfr.errors import InputError, LocalProtocolError
from privfr.experiment import Training
from privfr.faces.datasets import Faces
from privfr.methods.base import Method, is_private
from privfr.privacy.example import ExampleLevel, fit_private, start_private
from privfr.stepping import drawing, optimiser_of, pictures_of
from privfr.vector import Layout, Update, Vector

Pictures = NDArray[np.uint8]

__all__ = ["Learner", "device_of", "fit", "layout_of", "learning_rate", "seed_of", "shared_vector"]


def device_of(choice: str) -> torch.device:
    """Resolve "auto", "cpu" or "cuda". Raises `InputError` for a cuda that is not there."""
    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise InputError("device cuda: no usable GPU here; take --device cpu, or auto")
    return torch.device("cuda" if available and choice != "cpu" else "cpu")


def learning_rate(first: float, decay: float, progress: float) -> float:
    """Half a cosine, from `first` at progress 0 to `first * decay` at 1 (Loshchilov & Hutter 2017)."""
    return first * (decay + (1 - decay) * (1 + math.cos(math.pi * progress)) / 2)


# Share of a continuous training over which the rate rises from 0 (Goyal et al. 2017, arXiv 1706.02677, 2.2).
RAMP = 0.05


def fit(
    module: nn.Module,
    method: Method,
    faces: Faces,
    training: Training,
    rate: Callable[[float], float],
    generator: torch.Generator,
    *,
    imposters: Pictures | None = None,
    state: dict[str, Tensor] | None = None,
    stepped: Callable[[int, int, float], None] | None = None,
) -> float:
    """Train in place for `training.epochs` over the faces; gives the mean loss of the last pass.

    rate: share of this training done, in [0, 1) -> learning rate.  imposters: pictures of nobody, uint8
    [n, height, width, 3].  state: of the optimiser, by name, taken
    up and left behind; None for a fresh one.  stepped(done, total, loss): called after each step.
    """
    device = next(module.parameters()).device
    images = faces.images if imposters is None else np.concatenate([faces.images, imposters])
    examples = method.examples(module, faces, len(images) - len(faces), generator)
    optimiser = optimiser_of(module, training)
    if state:
        _take_up(optimiser, state)
    passes = _passes(len(examples), training)
    steps, done, mean = sum(batches for _, batches in passes), 0, math.nan
    module.train()
    for count, batches in passes:
        total = 0.0
        order = torch.randperm(len(examples), generator=generator)[:count]
        for picked in torch.tensor_split(order, batches):
            for group in optimiser.param_groups:
                group["lr"] = rate(done / steps)
            rows = examples.rows[picked.numpy()].T.reshape(-1)
            pictures = pictures_of(images, rows, training, generator)
            targets = torch.from_numpy(examples.targets[picked.numpy()])
            with (
                torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16"),
                drawing(module, training.dropout, generator),
            ):
                losses = method.loss(module, pictures.to(device), targets.to(device))
            optimiser.zero_grad()
            loss = losses.mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            method.stepped(module)
            done, total = done + 1, total + float(loss.detach()) * len(picked)
            if stepped:
                stepped(done, steps, float(loss.detach()))
        mean = total / count
    module.eval()
    if state is not None:
        state.update(_left_behind(optimiser))
    return mean


def _passes(examples: int, training: Training) -> list[tuple[int, int]]:
    """Examples and batches of each pass. Of a last one that is not whole, as many as its share, at least one.

    Batches as even as can be: a last one of two examples would take a full step on their noise.
    """
    shares = [min(1.0, training.epochs - done) for done in range(math.ceil(training.epochs))]
    counts = [max(1, round(share * examples)) for share in shares]
    return [(count, max(1, round(count / training.batch))) for count in counts]


def _left_behind(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name an optimiser's tensors "parameter.kind", contiguous so that they can be saved."""
    states = optimiser.state_dict()["state"].items()
    return {f"{i}.{kind}": value.contiguous() for i, held in states for kind, value in held.items()}


def _take_up(optimiser: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for name, value in state.items():
        number, _, kind = name.partition(".")
        like = parameters[int(number)]
        # In the parameter's own memory order: a fused step walks both as flat memory.
        held = torch.empty_like(like) if value.shape == like.shape else torch.empty_like(value)
        optimiser.state[like][kind] = held.copy_(value)


def _shared_state(module: nn.Module, method: Method) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if method.shared(name)}


def layout_of(method: Method) -> Layout:
    """Layout of the tensors that a method shares."""
    state = _shared_state(method.build(1, 0), method)
    return Layout(tuple(state), tuple(tuple(tensor.shape) for tensor in state.values()))


def shared_vector(module: nn.Module, method: Method, layout: Layout) -> Vector:
    """Copy a module's shared tensors into one vector, float32 [size]."""
    state = _shared_state(module, method)
    return layout.flatten({name: tensor.detach().cpu().numpy() for name, tensor in state.items()})


def seed_of(*words: object) -> int:
    """Seed of one purpose, independent of every other's."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _stream(*words: object) -> torch.Generator:
    """Make the generator of one purpose, independent of every other's."""
    return torch.Generator().manual_seed(seed_of(*words))


_workspace = threading.local()  # one module per worker and shape: clients are many, workers few


@dataclass
class Learner:
    """One client's training: its faces, its private tensors, and the method.

    rounds: how many are planned, for the learning rate's course.  seed, client: name its random streams.
    imposters: pictures of nobody, uint8 [n, height, width, 3].
    private: tensors that stay on the device, by name; empty before the first round.  frozen: those that are
    not trained, by name; every one of them.  optimiser: its state from round to round, for
    a training that is one whole; None for a fresh one each round.
    example: privacy of each picture, see `privfr.privacy.example`; None for none.  entropy: n -> n
    unpredictable bytes, which `example` needs; a round that is trained again is then another one, and is paid
    for again. Its optimiser is always fresh.
    """

    client: int | str
    method: Method
    faces: Faces
    training: Training
    layout: Layout
    rounds: int
    seed: int
    imposters: Pictures | None = None
    private: dict[str, Tensor] = field(default_factory=dict)
    frozen: dict[str, Tensor] = field(default_factory=dict)
    optimiser: dict[str, Tensor] | None = None
    stepped: Callable[[int, int, float], None] | None = None
    example: ExampleLevel | None = None
    entropy: Callable[[int], bytes] | None = None

    def learn(self, model: Vector, round: int) -> Update:
        """Train from the shared vector, float32 [size]; gives the difference, weighed by pictures.

        With `example` there are no metrics: no noise covers a loss.
        """
        if self.training.device != "cuda":
            torch.set_num_threads(self.training.threads)
        module = self._module(model)

        def rate(done: float) -> float:
            progress = (round + done) / self.rounds
            ramp = 1.0 if self.optimiser is None else min(1.0, (progress + 1e-3) / RAMP)
            return ramp * learning_rate(self.training.learning_rate, self.training.decay, progress)

        metrics = self._train(module, round, rate)
        self.private = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in module.state_dict().items()
            if is_private(self.method, name)
        }
        vector = shared_vector(module, self.method, self.layout) - model
        return Update(vector, float(len(self.faces)), metrics)

    def _train(self, module: nn.Module, round: int, rate: Callable[[float], float]) -> dict[str, float]:
        """Train one round in place; gives what may be told of it."""
        if self.example is None:
            generator = _stream(self.seed, self.client, round)
            loss = fit(
                module, self.method, self.faces, self.training, rate, generator, imposters=self.imposters,
                state=self.optimiser, stepped=self.stepped,
            )  # fmt: skip
            return {"loss": loss}
        if self.entropy is None:
            raise LocalProtocolError("a learner with example-level privacy needs entropy")
        fit_private(
            module, self.method, self.faces, self.training, self.example, rate, self.entropy,
            imposters=self.imposters, stepped=self.stepped,
        )  # fmt: skip
        return {}

    def _module(self, model: Vector) -> nn.Module:
        """Take this worker's module of the right shape, and make it this client's at the round's start.

        Every tensor is set, from the model, the frozen and private ones or the first day's: nothing of the
        client served before may linger (the released FedFace code forgets this).
        """
        device = device_of(self.training.device)
        classes = self.method.classes(self.faces)
        key = (self.method, classes, self.seed, device)
        if getattr(_workspace, "key", None) != key:
            fresh = self.method.build(classes, self.seed)
            for name, parameter in fresh.named_parameters():
                parameter.requires_grad_(not self.method.frozen(name))
            _workspace.module = fresh.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            _workspace.initial = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
            _workspace.key = key
        module: nn.Module = _workspace.module
        if missing := {name for name in _workspace.initial if self.method.frozen(name)} - set(self.frozen):
            raise LocalProtocolError(
                f"a learner was not given the frozen {min(missing)}, and would make it up"
            )
        shared = {name: torch.from_numpy(array) for name, array in self.layout.restore(model).items()}
        module.load_state_dict({**_workspace.initial, **self.frozen, **shared, **self.private})
        if self.example is None:
            self.method.start(module, self.faces, not self.private)
        elif not self.private:
            # A client's own directions: where all started from the same ones, they would pull the
            # backbone to put their n-th person each at the same place.
            start_private(module, self.method, self.faces, seed_of(self.seed, self.client, "head"))
        return module

    def save(self) -> bytes:
        """Private tensors as safetensors."""
        return safetensors.torch.save(self.private)

    def restore(self, saved: bytes) -> None:
        """Take up what `save` gave."""
        self.private = safetensors.torch.load(saved)

    def __repr__(self) -> str:
        """Name the client only."""
        return f"<Learner {self.client}>"
