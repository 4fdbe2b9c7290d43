"""Whether an engine's record fits this machine, for backends whose engines run only where they were made."""

from collections.abc import Mapping


def exact_refusal(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str | None:
    """What differs between two keys, in words; None if nothing does."""
    changed = sorted(name for name, value in ours.items() if theirs.get(name) != value)
    if changed:
        return f"made for another {' and '.join(changed)}"
    odd = sorted(theirs.keys() - ours.keys())
    return f"made by another latentc, which knows {' and '.join(odd)}" if odd else None
