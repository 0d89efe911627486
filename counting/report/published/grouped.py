"""Notes of several rows with the same text, as one."""

from collections.abc import Iterable


def grouped(entries: Iterable[tuple[str, str | None]], between: str = ",") -> list[tuple[str, str]]:
    """(names, text) of each distinct text, with the names that share it joined; entries without a text are left out."""
    names: dict[str, list[str]] = {}
    for name, text in entries:
        if text is not None:
            names.setdefault(text, []).append(name)
    return [(f"{between} ".join(joined), text) for text, joined in names.items()]
