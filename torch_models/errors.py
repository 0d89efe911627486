"""What a user can get wrong, said in one line that helps."""

LONGEST_SHOWN_VALUE = 60
LONGEST_SHOWN_NAME = 200


class UserError(ValueError):
    """A mistake in what the user gave: a file, a field, a flag. The command prints it as one line and exits with 2."""


class ArgumentError(UserError):
    """An argument whose value breaks a rule: reads as ``field = value: rule``.

    Whoever knows the argument under another name, such as a flag, puts that name to `field`, `value` and `rule`.
    """

    def __init__(self, field: str, value: object, rule: str) -> None:
        self.field = field
        self.value = value
        self.rule = rule
        super().__init__(f"{show_name(field)} = {show_value(value)}: {rule}")


class ConfigError(UserError):
    """A field of a config whose value breaks a rule.

    Reads as ``file: field = value: rule``; the file is filled in by whoever knows it (`in_file`).
    """

    def __init__(self, field: str, value: object, rule: str, file: str | None = None) -> None:
        self.field = field
        self.value = value
        self.rule = rule
        self.file = file
        where = f"{show_name(file)}: " if file else ""
        super().__init__(f"{where}{show_name(field)} = {show_value(value)}: {rule}")

    def in_file(self, file: str) -> "ConfigError":
        """The same error, naming the file that the field stands in."""
        return ConfigError(self.field, self.value, self.rule, file)


class CheckpointError(UserError):
    """A checkpoint whose files do not hold what its config describes; names file, tensor and shapes."""


def show_value(value: object) -> str:
    """A value as a user would recognise it, on one line, cut to a length that fits there."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else ascii(value)
    return text if len(text) <= LONGEST_SHOWN_VALUE else text[: LONGEST_SHOWN_VALUE - 1] + "…"


def show_name(name: str) -> str:
    """A field's or a file's name on one line, without what a terminal would obey, cut to a length that fits."""
    text = "".join(c if c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF else ascii(c)[1:-1] for c in name)
    return text if len(text) <= LONGEST_SHOWN_NAME else text[: LONGEST_SHOWN_NAME - 1] + "…"
