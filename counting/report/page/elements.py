"""HTML elements; whatever is put into one is text, and is escaped, unless it is an element itself."""

from collections.abc import Iterable
from html import escape

VOID = {"img", "meta", "source"}  # elements without content and without an end tag


class Html(str):
    """Finished HTML."""


def element(name: str, /, *content: str, **attributes: str | bool) -> Html:
    """An element with attributes and content: text, which is escaped, or `Html`.

    An attribute's name may end in an underscore, as `class_`; one that is False is left out, one that is True has no
    value.
    """
    given = {attribute.rstrip("_").replace("_", "-"): value for attribute, value in attributes.items()}
    typed = "".join(
        f" {attribute}" if value is True else f' {attribute}="{escape(value)}"'
        for attribute, value in given.items()
        if value is not False
    )
    inner = joined(content)
    assert not (name in VOID and inner), "a void element has no content"
    return Html(f"<{name}{typed}>" if name in VOID else f"<{name}{typed}>{inner}</{name}>")


def joined(content: Iterable[str]) -> Html:
    """Elements and texts one after the other; texts are escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in content))
