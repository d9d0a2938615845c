"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass

PLANE = "aiofs/dataplane"


@dataclass(frozen=True)
class Mutant:
    """One version of aiofs that breaks one rule."""

    name: str
    rule: str
    """What holds in aiofs, and does not in this version."""
    file: str
    """Relative to the project's root, as the test's is."""
    old: str
    new: str
    test: str
    """A pytest node id, parameters included."""
