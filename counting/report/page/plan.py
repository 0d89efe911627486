"""The plan of a page as a TOML file, and the JSON document as a file to save."""

import json
from base64 import b64encode
from collections.abc import Mapping

from counting.report.page.elements import Html, element

DELETE = "\x7f"  # the one character that JSON takes in a text and TOML does not


def plan_in_toml(plan: Mapping[str, object]) -> str:
    """One line for each flag; JSON's texts, lists, numbers and truth values are TOML's."""
    lines = [f"{flag} = {json.dumps(value, ensure_ascii=False)}" for flag, value in plan.items()]
    return "\n".join(lines).replace(DELETE, "\\u007f")


def saved_document(document: str) -> Html:
    """A link to save the JSON document, which is within the link."""
    inside = f"data:application/json;base64,{b64encode(document.encode()).decode()}"
    link = element("a", "Save the JSON document", href=inside, download="training_cost.json")
    return element("p", link, " with every number of this page, and all others of the results.")
