"""The layers of the house: who may import whom, what must stay light, and what is never used at all.

Every import counts, also one inside a function or for the type checker alone: a layer that has to know
a name from above has the wrong responsibility, whenever it looks it up.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import privfr

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "privfr"

# Layer -> the layers it may stand on. A layer is a module or a package of `privfr`; a new one joins here.
CORE = {"errors", "wire", "vector"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "cores": set(),
    "discrete": {"errors"},
    "storage": {"errors"},
    "wire": {"errors"},
    "vector": {"errors"},
    "coding": {"errors", "discrete", "vector"},
    "protocol": CORE | {"coding"},
    "backends": CORE | {"coding", "cores", "protocol"},
    "averaging": {"errors", "vector"},
    "federation": CORE | {"protocol", "averaging"},
    "privacy": CORE
    | {
        "storage",
        "discrete",
        "coding",
        "protocol",
        "averaging",
        "federation",
        "experiment",
        "faces",
        "methods",
        "stepping",
    },
    "engines": CORE | {"protocol", "federation"},
    "experiment": {"errors", "cores"},
    "faces": {"errors", "cores", "storage"},
    "imposters": {"errors", "storage", "experiment", "faces"},
    "methods": {"errors", "storage", "vector", "experiment", "faces", "imposters"},
    "stepping": {"errors", "storage", "experiment", "faces"},
    "trainer": {
        "errors",
        "storage",
        "vector",
        "experiment",
        "faces",
        "imposters",
        "methods",
        "privacy",
        "stepping",
    },
    "models": {"errors", "vector", "faces", "methods", "trainer"},
    "evaluation": {"errors", "storage", "faces"},
    "report": {"errors", "storage", "experiment", "faces", "federation", "privacy"},
    "auditing": {"errors", "directory", "experiment", "faces", "imposters"},
    "plan": {
        "errors",
        "averaging",
        "backends",
        "coding",
        "experiment",
        "faces",
        "imposters",
        "methods",
        "privacy",
        "protocol",
        "trainer",
    },
    "budgets": {
        "errors",
        "vector",
        "averaging",
        "directory",
        "experiment",
        "federation",
        "plan",
        "privacy",
        "protocol",
        "trainer",
    },
    "stage": {
        "errors",
        "vector",
        "averaging",
        "directory",
        "engines",
        "experiment",
        "federation",
        "protocol",
        "report",
        "storage",
    },
    "directory": {"errors", "storage", "vector", "experiment", "faces", "federation", "report"},
}
# What puts the parts together may know them all: these two, and nobody may import them but from above.
TOP = {"runs", "__init__"}

LIGHT = ["privfr", "privfr.federation", "privfr.backends", "privfr.engines.local", "privfr_cli.app"]


def sources(*roots: Path) -> list[Path]:
    return sorted(path for root in roots for path in root.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(parsed: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (module, name) for each import anywhere in a file; the name is "" for a whole module."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Absolute, so that layers can be read off them.
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def imports(path: Path) -> Iterator[tuple[str, str]]:
    return imports_of(tree(path))


def imported_layers(path: Path) -> set[str]:
    """Layers of `privfr` that a file imports from, `from privfr import x` included."""
    found = set()
    for module, name in imports(path):
        parts = [*module.split("."), name]
        if parts[0] == "privfr":
            found.add(parts[1] or "__init__")
    return found


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources(PACKAGE), ids=relative)
def test_no_layer_imports_from_above(path: Path) -> None:
    layer = layer_of(path)
    if layer in TOP:
        return
    assert layer in MAY_IMPORT, f"{layer} is new: say in MAY_IMPORT what it stands on"
    above = imported_layers(path) - MAY_IMPORT[layer] - {layer}
    assert not above, f"{relative(path)} imports from {sorted(above)}"


def test_the_layers_have_no_circle() -> None:
    order = list(TopologicalSorter(MAY_IMPORT).static_order())
    assert order.index("errors") < order.index("protocol") < order.index("backends")
    assert set(order) == set(MAY_IMPORT)


def test_a_file_that_breaks_the_layers_would_be_found() -> None:
    """The reader of imports sees every form of import there is, wherever it stands."""
    code = "import privfr.a.b as x\nfrom privfr.c import d\nfrom privfr import e\n"
    code += "def f():\n    if 1:\n        import privfr.g\n"
    assert set(imports_of(ast.parse(code))) == {
        ("privfr.a.b", ""), ("privfr.c", "d"), ("privfr", "e"), ("privfr.g", ""),
    }  # fmt: skip


@pytest.mark.parametrize(
    "layer", ["averaging", "federation", "engines", "backends", "protocol", "wire", "vector", "report"]
)
def test_the_protocol_never_needs_torch(layer: str) -> None:
    heavy = ("torch", "torchvision", "opacus", "safetensors")
    paths = sources(PACKAGE / layer) if (PACKAGE / layer).is_dir() else [PACKAGE / f"{layer}.py"]
    for path in paths:
        if path.name == "flower.py":
            continue
        assert not [module for module, _ in imports(path) if module.split(".")[0] in heavy], relative(path)


@pytest.mark.parametrize("module", LIGHT)
def test_importing_it_does_not_import_torch(module: str) -> None:
    """Each by itself, in a fresh interpreter: a light start, and a server that needs no torch."""
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & {"torch", "torchvision", "tenseal", "opacus", "flwr", "sklearn", "matplotlib"}


def test_every_backend_loads_without_torch() -> None:
    code = "from privfr.backends import BACKENDS, backend; [backend(name) for name in BACKENDS]; "
    code += "import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_only_the_flower_engine_knows_flower() -> None:
    users = {
        relative(p)
        for p in sources(PACKAGE, ROOT / "cli")
        if any(m.split(".")[0] == "flwr" for m, _ in imports(p))
    }
    assert users <= {"privfr/engines/flower.py"}


def test_only_backends_and_privacy_know_cryptography() -> None:
    crypto = {"nacl", "cryptography", "tenseal", "hmac"}
    for path in sources(PACKAGE):
        if layer_of(path) not in ("backends", "privacy", "discrete"):
            assert not {m.split(".")[0] for m, _ in imports(path)} & crypto, relative(path)


def test_frames_are_known_below_the_methods_only() -> None:
    """No method, trainer or face module touches the wire: what may leave a device is decided in one place."""
    above = sources(*(PACKAGE / name for name in ("faces", "methods", "imposters")))
    for path in [*above, PACKAGE / "trainer.py"]:
        assert not imported_layers(path) & {"wire", "protocol", "backends", "federation", "engines"}, (
            relative(path)
        )


@cache
def public_names(module: str) -> set[str] | None:
    """`__all__` of a module of privfr, its submodules included; None where it has none."""
    path = ROOT.joinpath(*module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    submodules = {p.stem for p in path.glob("*.py")} | {
        p.name for p in path.glob("*/") if (p / "__init__.py").is_file()
    }
    for node in tree(file).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            if module == "privfr":  # whose names are computed, and which is light
                return set(privfr.__all__) | submodules
            return set(ast.literal_eval(node.value)) | submodules
    return None


OUTSIDE = sources(ROOT / "cli", ROOT / "benchmarks")


@pytest.mark.parametrize("path", OUTSIDE, ids=relative)
def test_command_line_and_benchmarks_use_public_names_only(path: Path) -> None:
    for module, name in imports(path):
        if module.split(".")[0] != "privfr":
            continue
        hidden = [
            part for part in (*module.split("."), name) if part.startswith("_") and part != "__version__"
        ]
        assert not hidden, f"{module}.{name} is private"
        public = public_names(module)
        assert not name or public is None or name in public, f"{module}.{name} is not in its __all__"


GENERATORS = {"default_rng", "Generator", "SeedSequence", "BitGenerator", "PCG64", "Philox"}


def forbidden(parsed: ast.Module) -> list[str]:
    """Global randomness, pickles and code from data, wherever a file uses them."""
    found = [
        m
        for m, _ in imports_of(parsed)
        if m.split(".")[0] in ("random", "pickle", "cloudpickle", "dill", "joblib")
    ]
    for node in ast.walk(parsed):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("eval", "exec", "print")
        ):
            found.append(node.func.id)
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            head, _, last = text.rpartition(".")
            if head in ("np.random", "numpy.random") and last not in GENERATORS:
                found.append(text)
            if text in ("torch.load", "torch.save", "torch.manual_seed", "torch.seed", "np.random.seed"):
                found.append(text)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
    return found


@pytest.mark.parametrize("path", sources(PACKAGE), ids=relative)
def test_no_global_randomness_no_pickle_no_code_from_data(path: Path) -> None:
    assert forbidden(tree(path)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import random", "from random import choice", "import pickle", "eval('1')", "exec('1')",
        "np.random.rand(3)", "numpy.random.seed(1)", "from numpy import random; torch.load(path)",
        "np.load(p, allow_pickle=True)", "print(1)",
    ],
)  # fmt: skip
def test_what_is_forbidden_would_be_found(code: str) -> None:
    assert forbidden(ast.parse(code))
    assert not forbidden(ast.parse("np.random.default_rng(1); model.eval(); rng.random(); torch.Generator()"))
