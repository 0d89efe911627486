"""Errors for mistakes in user input, each with a message of one line."""

import re
from collections.abc import Mapping
from typing import Self

LONGEST_SHOWN_VALUE = 60
LONGEST_SHOWN_NAME = 200


class UserError(ValueError):
    """A mistake in a file, a config field or an argument. The command prints it on one line and exits with 2."""


class ArgumentError(UserError):
    """An argument whose value breaks a rule. The message is ``field = value: rule``.

    The attributes `field`, `value` and `rule` allow the command to print the same error with the name of its flag.
    """

    def __init__(self, field: str, value: object, rule: str) -> None:
        self.field = field
        self.value = value
        self.rule = rule
        super().__init__(f"{show_name(field)} = {show_value(value)}: {rule}")


class ConfigError(UserError):
    """A config field whose value breaks a rule.

    The message is ``file: field = value: rule``, without ``file:`` if no file is given. `in_file` adds the file.
    """

    def __init__(self, field: str, value: object, rule: str, file: str | None = None) -> None:
        self.field = field
        self.value = value
        self.rule = rule
        self.file = file
        where = f"{show_name(file)}: " if file else ""
        super().__init__(f"{where}{show_name(field)} = {show_value(value)}: {rule}")

    def in_file(self, file: str) -> Self:
        """Return the same error with `file`, the config that contains the field, in its message."""
        return type(self)(self.field, self.value, self.rule, file)

    def under(self, names: Mapping[str, str]) -> Self:
        """Return the same error with `names`, a file's own names of fields by the standard ones, in field and rule."""
        if not names:
            return self
        standard = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
        rule = standard.sub(lambda found: names[found[0]], self.rule)
        return type(self)(names.get(self.field, self.field), self.value, rule, self.file)


class NotModelledError(ConfigError):
    """A config of a family with modules here, but with a part that has none; transformers' class may be counted."""


class CheckpointError(UserError):
    """A checkpoint folder whose files are missing, cannot be read, or do not match its config.

    The message names the file, and the tensor and its shapes where they apply.
    """


def show_value(value: object) -> str:
    """Return `value` in JSON-like spelling on one line, cut to at most `LONGEST_SHOWN_VALUE` characters."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else ascii(value)
    return text if len(text) <= LONGEST_SHOWN_VALUE else text[: LONGEST_SHOWN_VALUE - 1] + "…"


def show_name(name: str) -> str:
    """Return the name of a field or file on one line, cut to at most `LONGEST_SHOWN_NAME` characters.

    Characters that are not printable, such as terminal control sequences, are escaped.
    """
    text = "".join(c if c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF else ascii(c)[1:-1] for c in name)
    return text if len(text) <= LONGEST_SHOWN_NAME else text[: LONGEST_SHOWN_NAME - 1] + "…"


def show_json_error(error: ValueError | RecursionError) -> str:
    """Return on one line why Python's parser refused a text of JSON, without its advice to change Python's settings."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    # A number with more digits than Python converts is a plain ValueError; what breaks the syntax or UTF-8 is not.
    return "a number has too many digits" if type(error) is ValueError else str(error)
