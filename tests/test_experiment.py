"""The tree of settings: from TOML and flags to one value, back to TOML, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfr.cores import usable_cores
from privfr.errors import InputError
from privfr.experiment import Data, Engine, Experiment, Federation, Privacy, load_experiment, parse_value

SEVERAL = {
    "data.size": (112, 96),
    "engine.phases": ("begin", "result"),
    "baselines": ("individual",),
    "training.betas": (0.5, 0.9),
}


def keys(node: type[msgspec.Struct] = Experiment, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, type, default) of every value in the tree."""
    for field in msgspec.structs.fields(node):
        name = f"{prefix}{field.name}"
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from keys(field.type, f"{name}.")
        else:
            yield name, field.type, field.default


def other(key: str, kind: Any, default: Any) -> Any:
    """Make an allowed value that is not the default."""
    if key in SEVERAL:
        return SEVERAL[key]
    bare = get_args(kind)[0] if get_origin(kind) is not Literal and get_args(kind) else kind
    if get_origin(bare) is Literal:
        return next((value for value in get_args(bare) if value != default), None)
    if bare is bool:
        return not default
    if bare is str:
        return f"{default}x"
    return default / 2 if bare is float and default else 0.25 if bare is float else default + 1


OTHERS = {key: other(key, kind, default) for key, kind, default in keys()}
OTHERS = {key: value for key, value in OTHERS.items() if value is not None}
NO_LEVEL = {"privacy.level": "none"}  # said aloud: a budget without a word of its level is refused


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "exp.toml"
    path.write_text(text, "utf-8")
    return path


# There and back


@given(st.sets(st.sampled_from(sorted(OTHERS))), st.integers(0, 2**53), st.text(min_size=1))
def test_toml_round_trip(
    tmp_path_factory: pytest.TempPathFactory, chosen: set[str], seed: int, source: str
) -> None:
    source = "".join(sign for sign in source if not "\ud800" <= sign <= "\udfff") or "x"
    changes = NO_LEVEL | {key: OTHERS[key] for key in chosen} | {"seed": seed, "data.source": source}
    wanted = load_experiment(None, changes)
    path = tmp_path_factory.mktemp("toml") / "exp.toml"
    path.write_bytes(wanted.to_toml().encode())
    assert load_experiment(path) == wanted


@pytest.mark.parametrize("key", OTHERS)
def test_every_key_can_be_set_and_survives(key: str, tmp_path: Path) -> None:
    changed = load_experiment(None, NO_LEVEL | {key: OTHERS[key]})
    assert changed != Experiment()
    assert load_experiment(file(tmp_path, changed.to_toml())) == changed


def test_no_file_and_no_change_is_the_default() -> None:
    assert load_experiment() == Experiment()


def test_changes_win_over_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    path = file(tmp_path, "seed = 3\n[data]\nclients = 5\ntest = 7\n")
    found = load_experiment(path, {"data.clients": 9})
    assert (found.seed, found.data.clients, found.data.test) == (3, 9, 7)


def test_size_as_one_number(tmp_path: Path) -> None:
    assert load_experiment(file(tmp_path, "[data]\nsize = 112\n")).data.size == (112, 112)
    assert load_experiment(None, {"data.size": 112}).data.size == (112, 112)
    assert load_experiment(None, {"data.size": [112, 96]}).data.size == (112, 96)


def test_whole_numbers_do_for_reals() -> None:
    found = load_experiment(None, {"method.scale": 64, "engine.losses": 0})
    assert found.method.scale == 64.0
    assert isinstance(found.method.scale, float)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("0.5", 0.5), ("true", True), ("[1, 2]", [1, 2]), ('"3"', "3"),
        ("cosface", "cosface"), ("lfw:/data", "lfw:/data"), ("", ""), ("a b", "a b"),
        ('["individual"]', ["individual"]), ("4\nseed = 3", "4\nseed = 3"),
    ],
)  # fmt: skip
def test_parse_value(text: str, value: Any) -> None:
    assert parse_value(text) == value


# What is wrong


@pytest.mark.parametrize("key", [key for key, *_ in keys()])
def test_a_slip_at_every_key_gets_its_hint(key: str, tmp_path: Path) -> None:
    slip = f"{key}x"
    with pytest.raises(InputError, match=rf"unknown key {slip}; did you mean {key}\?"):
        load_experiment(None, {slip: 1})
    *tables, name = slip.split(".")
    header = f"[{tables[0]}]\n" if tables else ""
    with pytest.raises(InputError, match=rf"exp.toml: unknown key {slip}; did you mean {key}\?"):
        load_experiment(file(tmp_path, f"{header}{name} = 1\n"))


def test_a_key_far_from_all_lists_what_there_is() -> None:
    with pytest.raises(InputError, match=r"unknown key data.qqq; known here: source, size, clients"):
        load_experiment(None, {"data.qqq": 1})
    with pytest.raises(InputError, match=r"unknown key qqq; known here: seed, data"):
        load_experiment(None, {"qqq.clients": 1})


@pytest.mark.parametrize("key", [key for key, *_ in keys()])
def test_a_wrong_type_at_every_key_names_it(key: str) -> None:
    with pytest.raises(InputError, match=rf"experiment: {key}"):
        load_experiment(None, {key: {"a": "table"}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.clients", 0), ("data.test", 1), ("data.alpha", 0.0), ("data.public", -1), ("data.size", 0),
        ("data.size", [64]), ("training.batch", 0), ("training.decay", 0.0), ("training.decay", 1.5),
        ("training.learning_rate", 0.0), ("training.weight_decay", -0.1), ("engine.losses", 1.0),
        ("engine.losses", -0.1), ("engine.workers", -1), ("federation.rounds", 0), ("seed", -1),
        ("data.clients", 2.5), ("data.clients", True), ("training.learning_rate", float("nan")),
        ("training.learning_rate", float("inf")),
        ("method.scale", float("inf")), ("data.alpha", float("nan")),
        ("seed", 2**64), ("data.source", 3), ("training.flip", 1),
    ],
)  # fmt: skip
def test_a_value_out_of_range_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=key):
        load_experiment(None, {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.scheme", "x"), ("method.head", "x"), ("training.optimizer", "x"), ("training.precision", "x"),
        ("training.device", "x"), ("engine.name", "x"), ("baselines", ["x"]),
    ],
)  # fmt: skip
def test_a_wrong_choice_lists_the_right_ones(key: str, value: Any) -> None:
    kind = next(found for name, found, _ in keys() if name == key)
    allowed = get_args(kind) if get_origin(kind) is Literal else get_args(get_args(kind)[0])
    with pytest.raises(InputError) as caught:
        load_experiment(None, {key: value})
    assert key in str(caught.value)
    assert "'x'" in str(caught.value)
    assert f"choose from {', '.join(map(str, allowed))}" in str(caught.value)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("method.trainable", "adaptor", "adapter"), ("privacy.level", "clients", "client"),
        ("baselines", ["centralized"], "centralised"),
    ],
)  # fmt: skip
def test_a_wrong_choice_gets_its_near_one(key: str, value: Any, meant: str) -> None:
    with pytest.raises(InputError, match=f"did you mean '{meant}'"):
        load_experiment(None, {key: value})


@pytest.mark.parametrize("key", ["epsilon", "delta", "client_noise"])
def test_a_budget_of_no_level_is_refused(key: str, tmp_path: Path) -> None:
    """Also of the default's size: who asks for an epsilon and gets no noise has been deceived."""
    value = getattr(Privacy(), key)
    config = tmp_path / "exp.toml"
    config.write_text(f"[privacy]\n{key} = {value}\n")
    for path, changes in ((None, {f"privacy.{key}": value}), (config, {})):
        with pytest.raises(InputError, match=rf"privacy\.{key} is set and privacy\.level \(--dp\) is not"):
            load_experiment(path, changes)
        assert load_experiment(path, changes | NO_LEVEL).privacy == Privacy()
    assert load_experiment(None, {"privacy.corruption": 0.1, "privacy.dropout": 0.1})


def test_a_table_in_the_place_of_a_value_and_back() -> None:
    with pytest.raises(InputError, match="data is a table, not 3"):
        load_experiment(None, {"data": 3})
    with pytest.raises(InputError, match=r"data.clients"):
        load_experiment(None, {"data.clients": 3, "data.clients.more": 3})


# Digest, and what is resolved


ENGINE_ONLY = {key for key in OTHERS if key.startswith("engine.")} | {"baselines"}


@pytest.mark.parametrize("key", OTHERS)
def test_members_must_agree_on_all_but_where_it_runs(key: str) -> None:
    changed = load_experiment(None, NO_LEVEL | {key: OTHERS[key]})
    assert (changed.digest() == Experiment().digest()) == (key in ENGINE_ONLY)


def test_digest_is_32_bytes_and_the_same_for_the_same() -> None:
    assert len(Experiment().digest()) == 32
    assert Experiment(seed=1).digest() == Experiment(seed=1).digest()


def test_resolved_fills_in_what_the_machine_decides() -> None:
    cores = usable_cores()
    found = Experiment(data=Data(clients=7)).resolved()
    assert found.engine.workers == min(cores, 7)
    assert found.engine.cores == cores
    assert found.federation.threshold == 5
    assert found.resolved() == found


@pytest.mark.parametrize(("clients", "threshold"), [(2, 2), (3, 2), (4, 3), (8, 6), (9, 6), (40, 27)])
def test_resolved_threshold_is_two_thirds_and_at_least_two(clients: int, threshold: int) -> None:
    assert Experiment(data=Data(clients=clients)).resolved().federation.threshold == threshold


def test_resolved_keeps_what_was_asked_for() -> None:
    wanted = Experiment(
        data=Data(clients=9),
        engine=Engine(workers=4, cores=3),
        federation=Federation(threshold=7, evaluate="member"),
    )
    assert wanted.resolved() == wanted
    many = Experiment(data=Data(clients=2), engine=Engine(workers=4))
    assert many.resolved().engine.workers == 2, "no more workers than clients"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes")
def test_cores_are_those_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert Experiment(data=Data(clients=7)).resolved().engine.cores == 1
    finally:
        os.sched_setaffinity(0, before)
