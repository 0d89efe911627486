"""Pages as their readers have them: elements, text, tables, numbers, and the document within."""

import json
from base64 import b64decode
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"img", "meta", "source"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: "list[Node | str]" = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, *tags: str) -> "list[Node]":
        inner = [child for child in self.children if isinstance(child, Node)]
        return [found for child in inner for found in ([child] if child.tag in tags else []) + child.all(*tags)]

    def one(self, tag: str) -> "Node":
        (found,) = self.all(tag)
        return found


class _Parser(HTMLParser):
    """Fails where an end tag does not close the element that is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("page")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        assert len(node.attributes) == len(attrs), f"an attribute of {tag} is given twice"
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parsed(page: str) -> Node:
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert len(parser.open) == 1, "an element is not closed"
    return parser.open[0].one("html")


def words(text: str) -> str:
    return " ".join(text.split())


def tables(page: Node) -> list[tuple[str, list[list[Node]]]]:
    """The title of each table in a fold, with its rows of cells."""
    return [
        (words(fold.one("summary").text), [row.all("th", "td") for row in fold.all("tr")])
        for fold in page.all("details")
        if fold.all("table")
    ]


def saved_text(page: Node) -> str:
    """The JSON document that the page offers to save."""
    (link,) = [link for link in page.all("a") if "download" in link.attributes]
    kind, _, inside = (link.attributes["href"] or "").partition(",")
    assert kind == "data:application/json;base64"
    return b64decode(inside).decode()


def numbers_of(document: str) -> set[str]:
    """Every number of a JSON document, digit by digit as it stands there."""
    found: list[str] = []

    def keep(digits: str) -> Any:
        found.append(digits)

    json.loads(document, parse_int=keep, parse_float=keep)
    return set(found)
