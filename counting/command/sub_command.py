"""What the parsers of the sub-commands share."""

import argparse
from typing import NoReturn

from torch_models.errors import UserError


class SubCommandParser(argparse.ArgumentParser):
    """The parser of the sub-command `name`: flags are not abbreviated, and an error is one line."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(
            prog=f"model_training_cost_analysis {name}",
            allow_abbrev=False,
            usage=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            description=description,
        )
        self._name = name

    def error(self, message: str) -> NoReturn:
        """Raises a UserError of one line, in place of argparse's usage and exit."""
        raise UserError(f"{message}; {self._name} --help lists the flags")
