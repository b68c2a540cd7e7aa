"""Fuzz the targets with atheris, guided by the coverage of `privfr`, and keep a small corpus.

    python tests/fuzz/run.py --seconds 600            all targets, the time shared among them
    python tests/fuzz/run.py --target server          one of them

An input that shows something wrong is kept as `crash-*`, `timeout-*` or `oom-*` in the target's corpus:
`tests/test_fuzz.py` then fails until it is put right. Exit status 1 if there was any.
"""

from __future__ import annotations

import argparse
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
# target -> its share of the time: the most to those with the most phases.
SHARES = {"frames": 0.1, "server": 0.35, "aggregator": 0.1, "member": 0.25, "homomorphic": 0.2}

# An input of a few hundred bytes that makes this process take more asks for an absurd allocation.
MEMORY = 6 << 30

# A corpus is kept for the tests to replay, not to go on from: the smallest inputs that reach most.
MOST_FILES = 50
LONGEST = 1024

WRONG = ("crash-*", "timeout-*", "oom-*")

# What once was wrong and has been put right; named by hand, and kept whatever it covers.
KEPT = (*WRONG, "regression-*")


def main() -> int:
    """Fuzz each target in a process of its own, since libFuzzer ends the one it runs in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--target", choices=SHARES, action="append")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--inside", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        _fuzz(options.target[0], options.inside)
    names = options.target or list(SHARES)
    for name in names:
        share = SHARES[name] / sum(SHARES[each] for each in names)
        _one(name, max(1, round(options.seconds * share)), options.corpus / name)
    found = [path for name in names for pattern in WRONG for path in (options.corpus / name).glob(pattern)]
    sys.stderr.writelines(f"wrong: {path}\n" for path in found)
    return 1 if found else 0


def _one(name: str, seconds: int, corpus: Path) -> None:
    """Fuzz one target, and merge what it found into its corpus."""
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        found, merged = Path(folder, "found"), Path(folder, "merged")
        found.mkdir()
        merged.mkdir()
        sys.stderr.write(f"\n{name}: {seconds} s\n")
        itself = _script(name, Path(folder, "itself"))
        fuzzing = (f"-max_total_time={seconds}", f"-artifact_prefix={corpus}/", str(found), str(corpus))
        merging = ("-merge=1", "-use_counters=0", str(merged), str(found), str(corpus))
        subprocess.run([itself, *fuzzing], check=False)
        subprocess.run([itself, *merging], check=False, stderr=subprocess.DEVNULL)
        kept = sorted(merged.iterdir(), key=lambda path: (path.stat().st_size, path.name))[:MOST_FILES]
        for path in corpus.iterdir():
            if not any(path.match(pattern) for pattern in KEPT):
                path.unlink()
        for path in kept:
            shutil.copy(path, corpus)


def _script(name: str, path: Path) -> Path:
    """Write a program that fuzzes one target: libFuzzer starts itself anew to merge."""
    command = shlex.join([sys.executable, str(Path(__file__).resolve()), "--target", name, "--inside"])
    path.write_text(f'#!/bin/sh\nexec {command} "$0" "$@"\n')
    path.chmod(0o700)
    return path


def _fuzz(name: str, arguments: list[str]) -> None:
    """Become libFuzzer."""
    import atheris

    sys.path.insert(0, str(HERE.parent))
    with atheris.instrument_imports(include=["privfr"]):
        from fuzz.targets import run, seeds
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if any(argument.startswith("-max_total_time") for argument in arguments):
        for number, seed in enumerate(seeds(name)):
            Path(arguments[-2], f"seed-{number}").write_bytes(seed)
    itself, *rest = arguments
    common = ["-timeout=10", f"-max_len={LONGEST}", "-len_control=20", "-print_final_stats=1"]
    atheris.Setup([itself, *common, *rest], lambda data: run(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
