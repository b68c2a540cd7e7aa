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

import safetensors.torch
import torch
from torch import Tensor, nn

from privfr.errors import InputError
from privfr.experiment import Training
from privfr.faces.backbones import to_tensor
from privfr.faces.datasets import Faces
from privfr.methods.base import Method
from privfr.vector import Layout, Update, Vector

__all__ = ["Learner", "device_of", "fit", "layout_of", "learning_rate", "shared_vector"]


def device_of(choice: str) -> torch.device:
    """Resolve "auto", "cpu" or "cuda". Raises `InputError` for a cuda that is not there."""
    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise InputError("device cuda: no usable GPU here; take --device cpu, or auto")
    return torch.device("cuda" if available and choice != "cpu" else "cpu")


def learning_rate(first: float, decay: float, step: int, steps: int) -> float:
    """Half a cosine, from `first` at step 0 to `first * decay` at the last (Loshchilov & Hutter 2017)."""
    progress = step / max(1, steps - 1)
    return first * (decay + (1 - decay) * (1 + math.cos(math.pi * progress)) / 2)


def fit(
    module: nn.Module,
    method: Method,
    faces: Faces,
    training: Training,
    rate: float,
    generator: torch.Generator,
    stepped: Callable[[int, int, float], None] | None = None,
) -> float:
    """Train in place for `training.epochs` over the faces; gives the mean loss of the last epoch.

    rate: learning rate. stepped(done, total, loss): called after each step.
    """
    device = next(module.parameters()).device
    labels = torch.from_numpy(faces.labels)
    optimiser = _optimiser(module, training, rate)
    # Batches as even as can be: a last one of two pictures would take a full step on their noise.
    batches = max(1, round(len(faces) / training.batch))
    steps, done, mean = training.epochs * batches, 0, math.nan
    module.train()
    for _ in range(training.epochs):
        total = 0.0
        order = torch.randperm(len(faces), generator=generator)
        for rows in torch.tensor_split(order, batches):
            images = _augment(to_tensor(faces.images[rows.numpy()]), training, generator).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
                losses = method.loss(module, images, labels[rows].to(device))
            optimiser.zero_grad()
            loss = losses.mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            done, total = done + 1, total + float(loss.detach()) * len(rows)
            if stepped:
                stepped(done, steps, float(loss.detach()))
        mean = total / len(faces)
    module.eval()
    return mean


def _optimiser(module: nn.Module, training: Training, rate: float) -> torch.optim.Optimizer:
    # Decay acts on matrices and filters alone, not on biases and norms (He et al. 2019, arXiv 1812.01187).
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, fused=True)
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def _augment(images: Tensor, training: Training, generator: torch.Generator) -> Tensor:
    if training.flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images[mirrored] = images[mirrored].flip(3)
    return images


def _shared_state(module: nn.Module, method: Method, shared: bool) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if method.shared(name) is shared}


def layout_of(method: Method) -> Layout:
    """Layout of the tensors that a method shares."""
    state = _shared_state(method.build(1, 0), method, True)
    return Layout(tuple(state), tuple(tuple(tensor.shape) for tensor in state.values()))


def shared_vector(module: nn.Module, method: Method, layout: Layout) -> Vector:
    """Copy a module's shared tensors into one vector, float32 [size]."""
    state = _shared_state(module, method, True)
    return layout.flatten({name: tensor.detach().cpu().numpy() for name, tensor in state.items()})


def _stream(*words: object) -> torch.Generator:
    """Make the generator of one purpose, independent of every other's."""
    seed = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)


_workspace = threading.local()  # one module per worker and shape: clients are many, workers few


@dataclass
class Learner:
    """One client's training: its faces, its private tensors, and the method.

    rounds: how many are planned, for the learning rate's course.  seed, client: name its random streams.
    private: tensors that stay on the device, by name; empty before the first round.
    """

    client: int | str
    method: Method
    faces: Faces
    training: Training
    layout: Layout
    rounds: int
    seed: int
    private: dict[str, Tensor] = field(default_factory=dict)
    stepped: Callable[[int, int, float], None] | None = None

    def learn(self, model: Vector, round: int) -> Update:
        """Train from the shared vector, float32 [size]; gives the difference, weighed by pictures."""
        if self.training.device != "cuda":
            torch.set_num_threads(self.training.threads)
        module = self._module()
        self._load(module, model)
        generator = _stream(self.seed, self.client, round)
        rate = learning_rate(self.training.learning_rate, self.training.decay, round, self.rounds)
        loss = fit(module, self.method, self.faces, self.training, rate, generator, self.stepped)
        private = _shared_state(module, self.method, False)
        self.private = {name: tensor.detach().cpu().clone() for name, tensor in private.items()}
        vector = shared_vector(module, self.method, self.layout) - model
        return Update(vector, float(len(self.faces)), {"loss": loss})

    def _module(self) -> nn.Module:
        """Take this worker's module of the right shape, with every tensor as on the first day.

        Nothing of the client served before may linger in it (the released FedFace code forgets this).
        """
        device = device_of(self.training.device)
        key = (self.method, len(self.faces.names), self.seed, device)
        if getattr(_workspace, "key", None) != key:
            fresh = self.method.build(len(self.faces.names), self.seed)
            _workspace.module = fresh.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            _workspace.initial = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
            _workspace.key = key
        module: nn.Module = _workspace.module
        module.load_state_dict(_workspace.initial)
        return module

    def _load(self, module: nn.Module, model: Vector) -> None:
        tensors = {name: torch.from_numpy(array) for name, array in self.layout.restore(model).items()}
        module.load_state_dict({**module.state_dict(), **tensors, **self.private})
        self.method.start(module, self.faces, not self.private)

    def save(self) -> bytes:
        """Private tensors as safetensors."""
        return safetensors.torch.save(self.private)

    def restore(self, saved: bytes) -> None:
        """Take up what `save` gave."""
        self.private = safetensors.torch.load(saved)

    def __repr__(self) -> str:
        """Name the client only."""
        return f"<Learner {self.client}>"
