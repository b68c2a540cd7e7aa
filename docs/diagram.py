"""Draws docs/protocol.md's diagrams and tables from the step tables that the machine itself runs.

    python docs/diagram.py            bring the page up to date
    python docs/diagram.py --check    exit with 1 where it is not

What stands between the two markers is replaced; the rest of the page is written by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from privfr.backends import BACKENDS, backend
from privfr.coding import Coding
from privfr.federation import HandedOver, HandOver  # its messages are listed too
from privfr.protocol import Ack, Backend, Result, RoundSpec, Sealed
from privfr.wire import Message

PAGE = Path(__file__).with_name("protocol.md")
START = "<!-- made by docs/diagram.py from privfr's step tables: do not edit by hand -->"
END = "<!-- end of what docs/diagram.py made -->"

# The example whose frames the limits are given for: ten clients, a million parameters and one metric; masked
# numbers have 16 bits, and a backend that can do without whole numbers adds up float32.
CLIENTS = 10
CODING = Coding(clip=0.25, bits=16, max_weight=1000)
MASKING = {"corruption": 0.05, "dropout": 0.05, "neighbours": 0, "shares": 0}


def example(found: Backend) -> RoundSpec:
    """Spec of the example's round."""
    options = MASKING if found.table else {}
    threshold = found.fewest(CLIENTS, options)
    parameters = found.plan(CLIENTS, threshold, CODING if found.integers else None, options)
    return RoundSpec(
        b"r" * 16, 0, found.name, tuple(range(CLIENTS)), threshold, ("loss",), 1_000_000,
        b"l" * 32, b"m" * 32, b"c" * 32, parameters,
    )  # fmt: skip


def main() -> None:
    """Write the page, or say that it is stale."""
    old = PAGE.read_text("utf-8")
    new = updated(old)
    if "--check" in sys.argv[1:]:
        sys.exit(f"{PAGE}: stale; run `python docs/diagram.py`" if new != old else 0)
    PAGE.write_text(new, "utf-8")


def updated(page: str) -> str:
    """Replace what stands between the markers."""
    head, _, rest = page.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n\n{generated()}\n{END}{tail}"


def generated() -> str:
    """Everything between the markers: a section a backend, then the message kinds."""
    backends = [backend(name) for name in BACKENDS]
    return "\n".join(line for part in (*map(section, backends), messages()) for line in part)


def section(found: Backend) -> Iterator[str]:
    """One backend: its sequence and its two tables."""
    yield from (f"## Backend `{found.name}`", "", f"Server learns: {found.server_learns}. {found.trust}", "")
    yield from ("```mermaid", *sequence(found), "```", "")
    yield from ("| phase | client expects | client answers | longest answer |", "|---|---|---|---:|")
    for mine, theirs in zip(found.client_steps, found.server_steps, strict=True):
        yield (
            f"| `{theirs.phase}` | `{tag(mine.expects)}` | `{tag(theirs.collects)}` "
            f"| {theirs.limit(example(found)):,} bytes |"
        )
    yield ""


def sequence(found: Backend) -> Iterator[str]:
    """Mermaid sequence diagram of one round."""
    yield "sequenceDiagram"
    yield from ("    participant S as server", "    participant C as each client of the roster")
    if found.handover:
        yield "    opt some clients lack the model: one that has it"
        yield f"    S->>C: {signature(HandOver)}"
        yield f"    C->>S: {signature(HandedOver)}"
        yield "    end"
    for number, (mine, theirs) in enumerate(zip(found.client_steps, found.server_steps, strict=True)):
        yield f"    S->>C: {signature(mine.expects)}"
        if number == 0:
            yield "    Note over C: check the proposal, train"
        yield f"    C->>S: {signature(theirs.collects)}"
        yield f"    Note over S: {theirs.phase}: absorb each answer, then close"
    yield f"    Note over S: {signature(Sealed)}"
    yield f"    S->>C: {signature(Result)}"
    yield "    Note over C: open, apply"
    yield f"    C->>S: {signature(Ack)}"


def messages() -> Iterator[str]:
    """Every kind of message that privfr registers."""
    yield from ("## Message kinds", "", "| kind | fields | what it is |", "|---|---|---|")
    known = [kind for kind in Message.__subclasses__() if kind.__module__.startswith("privfr.")]
    for kind in sorted(known, key=tag):
        fields = ", ".join(f"`{name}`" for name in kind.__struct_fields__)
        doc = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        yield f"| `{tag(kind)}` | {fields} | {doc} |"
    yield ""


def tag(message: type[Message]) -> str:
    """Name a kind of message as the wire does."""
    return str(message.__struct_config__.tag)


def signature(message: type[Message]) -> str:
    """Give a kind of message with its fields."""
    return f"{tag(message)} ({', '.join(message.__struct_fields__)})"


if __name__ == "__main__":
    main()
