"""Test vectors: privfr's code agrees with what an independent implementation wrote into `tests/vectors/`.

`reference.py` there computes every value a second time, by other means; `generate.py` writes the files.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from insecure import InsecureEntropy
from nacl.utils import randombytes_deterministic

from privfr import errors
from privfr.backends import backend, identity
from privfr.backends.masking import graph, graph_of, masks, messages, shamir
from privfr.backends.masking.client import Keyring, Parameters
from privfr.coding import Coding, FixedPoint, Lanes, pack, unpack
from privfr.errors import LocalProtocolError, PrivfrError
from privfr.protocol import Begin, ClientSession, RoundSpec, ServerSession
from privfr.vector import Layout, Update, digest
from privfr.wire import Message, encode

VECTORS = Path(__file__).with_name("vectors")
FILES = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(VECTORS.glob("*.json"))}

Given = dict[str, Any]
unhex = bytes.fromhex


def cases(file: str, *keys: str, part: str = "cases") -> pytest.MarkDecorator:
    """Parametrise by the file's cases of which every one of `keys` is given."""
    found = [each for each in FILES[file][part] if set(keys) <= set(each["given"])]
    assert found, f"{file}.json has no {part} with {keys}"
    return pytest.mark.parametrize("case", found, ids=lambda case: case["name"])


def bad(file: str, *keys: str) -> pytest.MarkDecorator:
    return cases(file, *keys, part="bad")


def refusal(case: Given) -> type[PrivfrError]:
    found: type[PrivfrError] = getattr(errors, case["error"])
    return found


def refused(case: Given, call: Callable[[], object]) -> None:
    """Expect the very class that the vector names, and no other below or above it."""
    with pytest.raises(refusal(case)) as caught:
        call()
    assert type(caught.value) is refusal(case)


class Replay:
    """Entropy that gives what a vector says was drawn, in its order and lengths."""

    def __init__(self, draws: list[str]) -> None:
        self._left = [unhex(each) for each in draws]

    def __call__(self, n: int) -> bytes:
        drawn = self._left.pop(0)
        assert len(drawn) == n
        return drawn

    def assert_used_up(self) -> None:
        assert self._left == []


# The files themselves


def test_the_files_are_what_the_reference_gives() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(VECTORS / "generate.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_changed_file_would_be_found(tmp_path: Path) -> None:
    for path in (*VECTORS.glob("*.py"), *VECTORS.glob("*.json")):
        text = path.read_text("utf-8")
        (tmp_path / path.name).write_text(
            text.replace("lane", "Lane") if path.name == "packing.json" else text
        )
    check = [sys.executable, str(tmp_path / "generate.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "packing.json: stale; run `make vectors`\n")


def test_the_reference_knows_nothing_of_privfr() -> None:
    for path in VECTORS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in named} & {"privfr", "insecure", "msgspec", "numpy"}, (
                path
            )


def test_every_vector_says_where_it_comes_from() -> None:
    for name, file in FILES.items():
        assert file["cases"] and file["bad"], name
        for each in (*file["cases"], *file["bad"]):
            assert each["source"].startswith(("RFC ", "privfr, independent reference")), each["name"]


def test_the_entropy_of_the_rounds_is_insecure_entropy() -> None:
    """The second round's seed, and the rule by which `reference.Draws` turns it into bytes."""
    drawn = FILES["round"]["cases"][1]["given"]["clients"][0]["entropy"]
    entropy = InsecureEntropy(200)
    assert [entropy(len(each) // 2).hex() for each in drawn] == drawn


# Agreement, derivation, keystream


@cases("agreement")
def test_agreement(case: Given) -> None:
    given = case["given"]
    assert masks.agree(unhex(given["private"]), unhex(given["public"])).hex() == case["gives"]["shared"]


@bad("agreement")
def test_a_refused_agreement(case: Given) -> None:
    given = case["given"]
    refused(case, lambda: masks.agree(unhex(given["private"]), unhex(given["public"])))


def derived(given: Given) -> dict[str, str]:
    step, context = given["step"], unhex(given["context"])
    if step == "self_key":
        return {"key": masks.self_key(unhex(given["seed"]), context, given["client"]).hex()}
    if step == "share_digest":
        found = messages.share_digest(unhex(given["share"]), context, given["owner"], given["holder"])
        return {"digest": found.hex()}
    private, public, pair = unhex(given["private"]), unhex(given["public"]), (given["one"], given["other"])
    if step == "box_keys":
        key_box, seed_box = masks.box_keys(masks.agree(private, public), context, *pair)
        return {"key_box": key_box.hex(), "seed_box": seed_box.hex()}
    assert step == "pair_key"
    return {"key": masks.pair_key(private, public, context, *pair).hex()}


@cases("derivation")
def test_derivation(case: Given) -> None:
    assert derived(case["given"]) == case["gives"]


@bad("derivation")
def test_a_refused_derivation(case: Given) -> None:
    refused(case, lambda: derived({"step": "self_key", **case["given"]}))


@cases("keystream", "nonce")
def test_the_keystream_of_rfc_8439(case: Given) -> None:
    given = case["given"]
    stream = masks._keystream(unhex(given["key"]), given["counter"], unhex(given["nonce"]))
    assert stream.update(bytes(64)).hex() == case["gives"]["stream"]


@cases("keystream", "lanes")
@pytest.mark.parametrize("threads", [1, 3])
def test_keystream(case: Given, threads: int) -> None:
    key = unhex(case["given"]["key"])
    lanes = np.zeros(case["given"]["lanes"], np.uint32)
    masks.add_masks(lanes, [key], [], threads)
    stream = lanes.astype("<u4").tobytes()
    assert stream == randombytes_deterministic(len(stream), key)
    if "stream" in case["gives"]:
        assert stream.hex() == case["gives"]["stream"]
    else:
        assert hashlib.blake2b(stream, digest_size=32).hexdigest() == case["gives"]["digest"]
        assert stream[-16:].hex() == case["gives"]["end"]
    masks.add_masks(lanes, [], [key], threads)
    assert not lanes.any()


@bad("keystream")
def test_a_refused_keystream(case: Given) -> None:
    refused(case, lambda: masks.add_masks(np.zeros(3, np.uint32), [unhex(case["given"]["key"])], []))


# Shares and graph


@cases("shamir")
def test_shamir(case: Given) -> None:
    given = case["given"]
    secret, threshold, entropy = unhex(given["secret"]), given["threshold"], Replay(given["entropy"])
    shares = shamir.split(secret, threshold, given["holders"], entropy)
    entropy.assert_used_up()
    assert [[holder, share.hex()] for holder, share in shares.items()] == case["gives"]["shares"]
    last = dict(list(shares.items())[-threshold:])
    assert shamir.combine(shares, threshold) == shamir.combine(last, threshold) == secret


@bad("shamir", "shares")
def test_refused_shares(case: Given) -> None:
    given = case["given"]
    shares = {holder: unhex(share) for holder, share in given["shares"]}
    refused(case, lambda: shamir.combine(shares, given["threshold"]))


@bad("shamir", "secret")
def test_a_refused_secret(case: Given) -> None:
    given = case["given"]
    secret, entropy = unhex(given["secret"]), InsecureEntropy(0)
    refused(case, lambda: shamir.split(secret, given["threshold"], given["holders"], entropy))


def options(given: Given) -> Given:
    return {"neighbours": 0, "shares": 0} | {name: given[name] for name in given if name != "clients"}


@cases("graph", "corruption")
def test_graph(case: Given) -> None:
    clients = case["given"]["clients"]
    promise, found = graph_of(clients, options(case["given"]))
    committee = graph.convene(clients, promise, found)
    assert case["gives"] == {
        "corrupt": promise.corrupt(clients), "dropped": promise.dropped(clients),
        "neighbours": found.neighbours, "shares": found.shares,
        "committee": committee.size, "quorum": committee.quorum,
        "fewest": graph.fewest(clients, found, committee),
    }  # fmt: skip
    raw = options(case["given"]) | {"neighbours": found.neighbours, "shares": found.shares}
    assert graph_of(clients, raw) == (promise, found)


@bad("graph", "corruption")
def test_a_refused_graph(case: Given) -> None:
    refused(case, lambda: graph_of(case["given"]["clients"], options(case["given"])))


@cases("graph", "promise")
def test_committee(case: Given) -> None:
    given, gives = case["given"]["promise"], case["gives"]
    promise = graph.Promise(given["corruption"], given["dropout"])
    found = graph.convene(given["clients"], promise, graph.Graph(2, 1))
    assert found == graph.Committee(gives["committee"], gives["quorum"])


@cases("graph", "size")
def test_members(case: Given) -> None:
    given, roster = case["given"], tuple(case["given"]["roster"])
    committee = graph.Committee(given["size"], 1)
    assert sorted(committee.members(roster, unhex(given["context"]))) == case["gives"]["members"]
    assert committee.members(roster[::-1], unhex(given["context"])) == set(case["gives"]["members"])


def neighbours_drawn(given: Given) -> list[int]:
    entropy = Replay(given["entropy"])
    drawn = graph.draw(given["client"], tuple(given["roster"]), given["neighbours"], entropy)
    entropy.assert_used_up()
    return list(drawn)


@cases("graph", "roster", "neighbours")
def test_neighbours(case: Given) -> None:
    assert neighbours_drawn(case["given"]) == case["gives"]["drawn"]


@bad("graph", "roster")
def test_refused_neighbours(case: Given) -> None:
    refused(case, lambda: neighbours_drawn(case["given"]))


# Coding and packing


def update_of(given: Given) -> Update:
    metrics = {name: float(value) for name, value in given["metrics"].items()}
    return Update(np.array([float(x) for x in given["vector"]], np.float32), given["weight"], metrics)


def point_of(given: Given) -> FixedPoint:
    """A vector's coding; the bad ones leave out what is the same in all of them."""
    usual: Given = {"clients": 3, "metrics": ["loss", "accuracy"], "size": 5, "context": bytes(32).hex()}
    given = usual | given
    coding = Coding(**given["coding"])
    return FixedPoint(
        coding, given["clients"], tuple(given["metrics"]), given["size"], unhex(given["context"])
    )


def assert_mean(found: Any, expected: Mapping[str, Any]) -> None:
    assert (found.weight, found.count, found.saturated, dict(found.metrics)) == (
        expected["weight"], expected["count"], expected["saturated"], expected["metrics"],
    )  # fmt: skip
    assert found.vector.astype("<f4").tobytes().hex() == expected["vector"]


@cases("coding")
def test_coding(case: Given) -> None:
    gives, point = case["gives"], point_of(case["given"])
    assert (point.modulus_bits, point.lanes) == (gives["modulus_bits"], gives["count"])
    total = np.zeros(point.lanes, np.uint32)
    for given, expected in zip(case["given"]["updates"], gives["lanes"], strict=True):
        entropy = Replay(given["entropy"])
        lanes = point.encode(update_of(given), entropy)
        entropy.assert_used_up()
        assert pack(lanes, point.modulus_bits).hex() == expected
        total += lanes
    assert pack(total, point.modulus_bits).hex() == gives["total"]
    reduced = unpack(unhex(gives["total"]), point.modulus_bits, point.lanes)
    assert_mean(point.decode(reduced, len(gives["lanes"])), gives["mean"])


@bad("coding", "coding")
def test_a_refused_coding(case: Given) -> None:
    given = case["given"]
    if "update" in given:
        point = point_of(given)
        refused(case, lambda: point.encode(update_of(given["update"]), InsecureEntropy(0)))
    elif "total" in given:
        point = point_of(given)
        total = unpack(unhex(given["total"]), point.modulus_bits, point.lanes)
        refused(case, lambda: point.decode(total, 2))
    else:
        refused(case, lambda: point_of(given))


def lanes_of(numbers: list[int]) -> Lanes:
    return np.array(numbers, np.uint32)


@cases("packing")
def test_packing(case: Given) -> None:
    bits, lanes, packed = case["given"]["bits"], case["given"]["lanes"], case["gives"]["packed"]
    assert pack(lanes_of(lanes), bits).hex() == packed
    assert unpack(unhex(packed), bits, len(lanes)).tolist() == lanes


@bad("packing")
def test_a_refused_packing(case: Given) -> None:
    given = case["given"]
    refused(case, lambda: unpack(unhex(given["packed"]), given["bits"], given["count"]))


# Signatures


def signed_bytes(given: Given) -> bytes:
    if "message" in given:
        return unhex(given["message"])
    if "survivors" in given:
        return messages.survivor_bytes(unhex(given["context"]), tuple(given["survivors"]))
    advert = messages.Advert(unhex(given["box_key"]), unhex(given["mask_key"]), b"")
    return messages.advert_bytes(unhex(given["context"]), given["client"], advert)


@cases("signatures")
def test_signatures(case: Given) -> None:
    signed, signature = signed_bytes(case["given"]), unhex(case["gives"]["signature"])
    assert signed.hex() == case["gives"]["signed"]
    assert identity.sign(unhex(case["given"]["identity"]), signed) == signature
    identity.verify(unhex(case["gives"]["key"]), signed, signature)


@bad("signatures")
def test_a_refused_signature(case: Given) -> None:
    refused(case, lambda: identity.verify(*(unhex(case["given"][x]) for x in ("key", "signed", "signature"))))


# Spec


def spec_of(given: Given, parameters: bytes) -> RoundSpec:
    given = {name: given[name] for name in RoundSpec.__struct_fields__ if name in given}
    for name in ("run", "layout", "model", "config"):
        given[name] = unhex(given[name])
    given |= {"clients": tuple(given["clients"]), "metrics": tuple(given["metrics"])}
    return RoundSpec(**given | {"parameters": parameters})


@cases("spec", "run")
def test_spec(case: Given) -> None:
    given, gives = case["given"], case["gives"]
    parameters = b""
    if "coding" in given:
        found = Parameters(
            msgspec.convert(given["coding"], Coding),
            graph.Graph(*given["graph"]),
            graph.Committee(*given["committee"]),
        )
        parameters = msgspec.msgpack.encode(found)
    assert parameters.hex() == gives["parameters"]
    spec = spec_of(given, parameters)
    spec.check()
    assert msgspec.msgpack.encode(spec).hex() == gives["encoded"]
    assert spec.context().hex() == gives["context"]
    if parameters:
        assert Parameters.of(spec) == found


def test_layout_and_model_digests() -> None:
    layout, model = (next(c for c in FILES["spec"]["cases"] if c["name"] == x) for x in ("layout", "model"))
    given = layout["given"]["layout"]
    found = Layout(tuple(given["names"]), tuple(tuple(shape) for shape in given["shapes"]))
    assert msgspec.msgpack.encode(found).hex() == layout["gives"]["encoded"]
    assert found.digest.hex() == layout["gives"]["digest"]
    assert digest(np.array(model["given"]["model"], np.float32)).hex() == model["gives"]["digest"]


@bad("spec", "spec")
def test_a_refused_spec(case: Given) -> None:
    spec = msgspec.msgpack.decode(unhex(case["given"]["spec"]), type=RoundSpec)
    refused(case, spec.check)


@bad("spec", "parameters")
def test_refused_parameters(case: Given) -> None:
    good = FILES["spec"]["cases"][0]
    spec = spec_of(good["given"], unhex(case["given"]["parameters"]))
    refused(case, lambda: Parameters.of(spec))


# Whole rounds

ROUNDS = {case["name"]: case for case in FILES["round"]["cases"] if "spec" in case["given"]}


def session_of(case: Given, client: int) -> tuple[ClientSession, Replay]:
    """A client's session with the entropy of the vector."""
    parties = case["given"]["clients"]
    party = next(each for each in parties if each["client"] == client)
    keyring = Keyring(unhex(party["identity"]), {each["client"]: unhex(each["key"]) for each in parties})
    entropy, spec = Replay(party["entropy"]), round_spec(case)
    found = backend(spec.backend)
    state = found.client_state(spec, client, update_of(party["update"]), keyring, entropy)
    return ClientSession(found, state, entropy), entropy


def server_of(case: Given) -> ServerSession:
    roster = {each["client"]: unhex(each["key"]) for each in case["given"]["clients"]}
    found, spec = backend(round_spec(case).backend), round_spec(case)
    return ServerSession(found, spec, found.server_state(spec, roster))


def round_spec(case: Given) -> RoundSpec:
    given = case["given"]["spec"]
    return spec_of(given, unhex(given["parameters"]))


def frames_of(case: Given, client: int) -> Iterator[tuple[str, bytes, bytes]]:
    """A client's phases: name, the server's frame, its own."""
    for phase in case["gives"]["phases"]:
        for each in phase["frames"]:
            if each["client"] == client:
                yield phase["phase"], unhex(each["down"]), unhex(each["up"])


@cases("round", "spec")
def test_the_clients_of_a_round(case: Given) -> None:
    assert round_spec(case).context().hex() == case["gives"]["context"]
    for party in case["given"]["clients"]:
        session, entropy = session_of(case, party["client"])
        for phase, down, up in frames_of(case, party["client"]):
            assert session.phase == phase
            assert session.receive(down) == up, (party["client"], phase)
        entropy.assert_used_up()


@cases("round", "spec")
def test_the_server_of_a_round(case: Given) -> None:
    server, gives = server_of(case), case["gives"]
    outbox = dict.fromkeys(server.spec.clients, encode(Begin(server.spec, memoryview(b""))))
    for phase in gives["phases"]:
        assert server.phase == phase["phase"]
        assert outbox == {each["client"]: unhex(each["down"]) for each in phase["frames"]}
        arrived = [each for each in phase["frames"] if each["arrives"]]
        # The order in which answers arrive is of no consequence.
        outbox = server.turn([(each["client"], unhex(each["up"])) for each in arrived[::-1]])
        lost = {each["client"] for each in phase["frames"] if not each["arrives"]}
        assert lost == {client for client, when in server.dropped.items() if when == phase["phase"]}
    assert server.faults == []
    assert server.sealed is not None and list(server.sealed.survivors) == gives["survivors"]
    assert encode(server.sealed).hex() == gives["sealed"]
    assert_mean(server.backend.open(server.spec, server.sealed, {}), gives["mean"])


@cases("round", "spec")
def test_the_sealed_sum_is_that_of_the_survivors(case: Given) -> None:
    """The reference checks it too; here it is against the coding of privfr and the updates in the file."""
    point, lanes = point_of_round(case), []
    for party in case["given"]["clients"]:
        if party["client"] in case["gives"]["survivors"]:
            lanes.append(point.encode(update_of(party["update"]), Replay(party["entropy"])))
    total: Lanes = np.sum(lanes, axis=0, dtype=np.uint32)
    packed = pack(total, point.modulus_bits).hex()
    assert case["gives"]["sealed"].endswith(packed)


def point_of_round(case: Given) -> FixedPoint:
    spec = round_spec(case)
    return FixedPoint(
        Parameters.of(spec).coding,
        len(spec.clients),
        spec.metrics,
        spec.size,
        unhex(case["gives"]["context"]),
    )


def test_the_rounds_lose_answers_in_every_phase() -> None:
    lost = {
        phase["phase"]
        for case in ROUNDS.values()
        for phase in case["gives"]["phases"]
        for each in phase["frames"]
        if not each["arrives"]
    }
    assert lost == {"advertise", "share", "mask", "consent", "reveal"}


@cases("round", "down")
def test_a_client_goes_on(case: Given) -> None:
    """With a frame of the server's exchanged: what else it says stays the same, but for what it reveals."""
    given = case["given"]
    session, _ = session_of(ROUNDS[given["round"]], given["client"])
    said, expected = [], []
    for phase, down, up in frames_of(ROUNDS[given["round"]], given["client"]):
        said.append(session.receive(unhex(given["down"]) if phase == given["phase"] else down))
        expected.append(up)
    assert said == [*expected[:-1], unhex(case["gives"]["reveal"])]


def play_with(round: str, answers: list[Given]) -> ServerSession:
    """The server's side of a round in which some answers are exchanged; all must be taken."""
    server = server_of(ROUNDS[round])
    instead = {(each["phase"], each["client"]): each["up"] for each in answers}
    for phase in ROUNDS[round]["gives"]["phases"]:
        for each in phase["frames"]:
            up = instead.pop((phase["phase"], each["client"]), each["up"])
            assert not each["arrives"] or server.absorb(each["client"], unhex(up))
        if phase["phase"] == "reveal":
            assert not instead
        server.close()
    return server


@cases("round", "up")
def test_the_server_goes_on(case: Given) -> None:
    server = play_with(case["given"]["round"], [case["given"]])
    assert server.faults == [] and server.sealed is not None
    assert encode(server.sealed).hex() == case["gives"]["sealed"]


@bad("round", "taken")
def test_answers_that_end_a_round(case: Given) -> None:
    refused(case, lambda: play_with(case["given"]["round"], case["given"]["taken"]))


@bad("round", "down")
def test_a_frame_that_a_client_refuses(case: Given) -> None:
    given = case["given"]
    session, _ = session_of(ROUNDS[given["round"]], given["client"])
    for phase, down, _ in frames_of(ROUNDS[given["round"]], given["client"]):
        if phase == given["phase"]:
            break
        session.receive(down)
    assert session.phase == given["phase"]
    refused(case, lambda: session.receive(unhex(given["down"])))
    assert session.phase == given["phase"]


@bad("round", "up")
def test_a_frame_that_the_server_refuses(case: Given) -> None:
    given = case["given"]
    server = server_of(ROUNDS[given["round"]])
    for phase in ROUNDS[given["round"]]["gives"]["phases"]:
        if phase["phase"] == given["phase"]:
            break
        server.turn([(each["client"], unhex(each["up"])) for each in phase["frames"] if each["arrives"]])
    assert server.phase == given["phase"]
    assert not server.absorb(given["client"], unhex(given["up"]))
    [(client, fault)] = server.faults
    assert client == given["client"]
    assert fault.startswith(f"{given['phase']}: {case['error']}: ")


def test_every_message_of_the_protocol_is_in_a_vector() -> None:
    tags = {
        found.__struct_config__.tag
        for name in messages.__all__
        if isinstance(found := getattr(messages, name), type) and issubclass(found, Message)
    }
    text = json.dumps(FILES["round"])
    assert all(str(tag).encode().hex() in text for tag in tags) and len(tags) == 9


def test_a_vector_that_is_wrong_would_be_found() -> None:
    """The replayed entropy, the frames and the refusals all matter: change one of each."""
    case = json.loads(json.dumps(next(iter(ROUNDS.values()))))
    case["given"]["clients"][0]["entropy"][0] = bytes(32).hex()
    with pytest.raises(AssertionError):
        test_the_clients_of_a_round(case)
    case["gives"]["sealed"] = case["gives"]["sealed"][:-2] + "ff"
    with pytest.raises(AssertionError):
        test_the_server_of_a_round(case)
    with pytest.raises(LocalProtocolError):
        refused({"error": "BadFrame"}, lambda: masks.agree(b"", b""))
