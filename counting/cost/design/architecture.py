"""What a design is: a config.json, its size, and the rules that shaped it."""

import msgspec


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """A designed config.json, and its distance from the requested number of parameters."""

    config: dict[str, object]  # Hugging Face's Llama fields
    parameters: int
    target_parameters: int
    relative_error: float  # parameters / target - 1
    rules: tuple[str, ...]  # every rule that shaped it, with its source

    def config_json(self) -> str:
        """The config as the text of a config.json."""
        return msgspec.json.format(msgspec.json.encode(self.config), indent=2).decode() + "\n"
