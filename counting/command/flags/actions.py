"""What argparse does with a value."""

import argparse


class Joined(argparse.Action):
    """Joins the values of a flag that is given several times with commas."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        """Add the values to those before, after a comma."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")
