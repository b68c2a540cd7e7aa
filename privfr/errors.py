"""Every error privfr raises on purpose.

One root. Below it, three kinds, because three different people must act:
the user who gave something unusable (`InputError`), the programmer who called things in the wrong
order (`LocalProtocolError`), and the peer who broke the protocol (`RemoteProtocolError`).
No message ever holds key material, a face or a model value.
"""

from __future__ import annotations

__all__ = [
    "BadFrame",
    "BudgetSpent",
    "Duplicate",
    "InputError",
    "LocalProtocolError",
    "PolicyRefused",
    "PrivfrError",
    "RemoteProtocolError",
    "TooFewClients",
    "TooLarge",
    "WrongPhase",
]


class PrivfrError(Exception):
    """Root of every error raised on purpose by privfr."""


class InputError(PrivfrError, ValueError):
    """The user gave a file, key or value that cannot be used; the message names it and the remedy."""


class LocalProtocolError(PrivfrError):
    """This side called the protocol out of turn or with impossible arguments: a bug on this side."""


class RemoteProtocolError(PrivfrError):
    """The peer sent something the protocol does not allow."""


class BadFrame(RemoteProtocolError):
    """The bytes are not the canonical encoding of a known message, or its content is impossible."""


class TooLarge(BadFrame):
    """The frame is longer than any message of this phase can be."""


class WrongPhase(RemoteProtocolError):
    """A well-formed message arrived in a phase, round or run where it does not belong."""


class Duplicate(RemoteProtocolError):
    """A client answered twice in one phase; its first answer stands."""


class PolicyRefused(RemoteProtocolError):
    """The server proposed a round below the client's own policy floors; the client takes no part."""


class BudgetSpent(PolicyRefused):
    """A client's privacy budget does not pay for the proposed round; it takes no part from now on."""


class TooFewClients(PrivfrError):
    """Fewer clients than the round's threshold are left; the round ends without an aggregate."""
