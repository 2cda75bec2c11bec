"""The audit: parts drawn at random, whatever their verdict, for people to judge.

Labels of alarms say nothing about good parts that passed, or how often good parts are rejected;
labels of a random sample do. A part is drawn by a hash of its epoch and sequence: with a known
chance, by nothing that is seen in it, and the same after a restart.
"""

from hashlib import blake2b
from typing import Final

_WHOLE: Final = 1 << 64


def chance_if_drawn(epoch: str, sequence: int, chance: float) -> float | None:
    """`chance` if the part is among the share `chance` that is drawn; `None` if it is not."""
    digest = blake2b(f"{epoch}:{sequence}".encode(), digest_size=8).digest()
    return chance if int.from_bytes(digest, "big") < chance * _WHOLE else None
