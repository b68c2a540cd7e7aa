"""Flower's own SecAgg+, all of its parties in this process: what `benchmarks.masking` is compared with.

Nothing of it is written anew: the clients are `flwr.client.mod.secaggplus_mod`, the server is
`flwr.server.workflow.SecAggPlusWorkflow`, with Flower's default quantisation. Between them stands a `Network`
that hands messages over in memory. The clients' training, here the making of a reply, is not counted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from time import process_time as clock

import numpy as np

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

try:
    from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
    from flwr.client.mod import secaggplus_mod
    from flwr.common import Code, FitIns, FitRes, Parameters, Status
    from flwr.common import ndarrays_to_parameters as to_parameters
    from flwr.common import parameters_to_ndarrays as to_arrays
    from flwr.common.secure_aggregation.crypto.shamir import create_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
    from flwr.common.secure_aggregation.secaggplus_constants import (
        RECORD_KEY_CONFIGS,
        RECORD_KEY_STATE,
        Key,
        Stage,
    )
    from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat
    from flwr.compat.common import recorddict_compat as compat
    from flwr.server.compat.legacy_context import LegacyContext
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.supercore.primitives.asymmetric import (
        bytes_to_public_key,
        generate_key_pairs,
        private_key_to_bytes,
        public_key_to_bytes,
    )
    from flwr.supercore.task_identity import TaskIdentity
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing.name} is missing: pip install 'flwr>=1.41' (or privfr[flower])") from None

WEIGHT = 500  # pictures of every client
# The last stage before which clients drop out, counted from 0: setup, share keys, collect, unmask.
COLLECT = 2

logging.getLogger("flwr").setLevel(logging.ERROR)
# Of the process, for all messages. Flower's launcher sets it.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1


class Trainer:
    """A client's training: always the same update. seconds: what its calls took together."""

    def __init__(self, update: np.ndarray) -> None:
        self.result = FitRes(Status(Code.OK, ""), to_parameters([update]), WEIGHT, {})
        self.seconds = 0.0

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as a client's app does."""
        started = clock()
        answer = Message(compat.fitres_to_recorddict(self.result, True), reply_to=message)
        self.seconds += clock() - started
        return answer


class Network:
    """As much of `flwr.serverapp.Grid` as the workflow uses; `dropped` do not answer from COLLECT on."""

    def __init__(self, clients: int, trainer: Trainer, dropped: set[int]) -> None:
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in range(1, clients + 1)}
        self.trainer, self.dropped, self.stage = trainer, dropped, 0

    def send_and_receive(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        """Let each client answer its message."""
        there = [m for m in messages if self.stage < COLLECT or m.metadata.dst_node_id not in self.dropped]
        self.stage += 1
        for message in there:
            # As off the wire: the mod changes what it is given, and the setup's record is everyone's.
            message.content = RecordDict(
                {
                    k: ConfigRecord(dict(v)) if isinstance(v, ConfigRecord) else v
                    for k, v in message.content.items()
                }
            )
        return [secaggplus_mod(m, self.contexts[m.metadata.dst_node_id], self.trainer) for m in there]


class Neighbour:
    """As much of a `ClientProxy` as the workflow uses."""

    def __init__(self, node: int) -> None:
        self.node_id, self.cid = node, str(node)


class TakeSum(FedAvg):
    """A strategy that samples everyone, and does nothing with the aggregate but keep it."""

    def __init__(self, clients: int) -> None:
        super().__init__()
        self.clients, self.aggregate = clients, Parameters([], "")

    def configure_fit(self, server_round, parameters, client_manager):  # type: ignore[no-untyped-def]
        """Sample everyone."""
        return [(Neighbour(node), FitIns(parameters, {})) for node in range(1, self.clients + 1)]

    def aggregate_fit(self, server_round, results, failures):  # type: ignore[no-untyped-def]
        """Keep the aggregate, which the workflow puts in the place of each client's parameters."""
        self.aggregate = results[0][1].parameters
        return None, {}


def whole_round(
    update: np.ndarray, clients: int, neighbours: int, threshold: int, dropped: int
) -> tuple[float, np.ndarray]:
    """Run a round; gives its seconds without the training, and the mean of the updates.

    neighbours: even; each client masks with so many, and shares its secrets among them and itself.
    """
    trainer, strategy = Trainer(update), TakeSum(clients)
    records = {
        "config": ConfigRecord({"current_round": 1}),
        "parameters": compat.parameters_to_arrayrecord(to_parameters([]), True),
    }
    context = LegacyContext(Context(1, 0, {}, RecordDict(records), {}), strategy=strategy)
    network = Network(clients, trainer, set(range(1, dropped + 1)))  # the graph is shuffled
    workflow = SecAggPlusWorkflow(neighbours + 1, threshold)
    started = clock()
    workflow(network, context)  # type: ignore[arg-type]
    seconds = clock() - started - trainer.seconds
    return seconds, to_arrays(strategy.aggregate)[0]


class MaskingClient:
    """One client that has shared its keys with its neighbours and holds their boxes."""

    def __init__(self, update: np.ndarray, neighbours: int, threshold: int) -> None:
        everyone = neighbours + 1
        middle = everyone // 2  # half of the others come before it, half after it: it adds and subtracts
        self.trainer, self.context = Trainer(update), Context(1, middle, {}, RecordDict(), {})
        own = self._ask(
            Stage.SETUP,
            {
                Key.SAMPLE_NUMBER: everyone,
                Key.SHARE_NUMBER: everyone,
                Key.THRESHOLD: threshold,
                Key.CLIPPING_RANGE: 8.0,
                Key.TARGET_RANGE: 1 << 22,
                Key.MOD_RANGE: 1 << 32,
                Key.MAX_WEIGHT: 1000.0,
            },
        )
        others = {n: (generate_key_pairs(), generate_key_pairs()) for n in range(everyone) if n != middle}
        keys = {
            str(n): [public_key_to_bytes(a[1]), public_key_to_bytes(b[1])] for n, (a, b) in others.items()
        }
        self._ask(Stage.SHARE_KEYS, keys | {str(middle): [own[Key.PUBLIC_KEY_1], own[Key.PUBLIC_KEY_2]]})
        box_key = bytes_to_public_key(own[Key.PUBLIC_KEY_2])
        # One neighbour's shares serve for all: the client under test only decrypts and keeps them.
        seed_share = create_shares(bytes(32), 2, 2)[0]
        key_share = create_shares(private_key_to_bytes(next(iter(others.values()))[0][0]), 2, 2)[0]
        boxes = [
            encrypt(
                generate_shared_key(b[0], box_key),
                share_keys_plaintext_concat(n, middle, seed_share, key_share),
            )
            for n, (_, b) in others.items()
        ]
        self.boxes = {Key.CIPHERTEXT_LIST: boxes, Key.SOURCE_LIST: list(others)}
        self.state = dict(self.context.state.config_records[RECORD_KEY_STATE])

    def mask(self) -> float:
        """Open the boxes, quantise, mask; gives the seconds. Can be repeated."""
        self.context.state.config_records[RECORD_KEY_STATE] = ConfigRecord(dict(self.state))
        self.trainer.seconds = 0.0
        started = clock()
        self._ask(Stage.COLLECT_MASKED_VECTORS, dict(self.boxes))
        return clock() - started - self.trainer.seconds

    def _ask(self, stage: str, record: dict) -> ConfigRecord:  # type: ignore[type-arg]
        content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(record | {Key.STAGE: stage})})
        message = Message(content, self.context.node_id, MessageType.TRAIN)
        return secaggplus_mod(message, self.context, self.trainer).content.config_records[RECORD_KEY_CONFIGS]
