"""The flags: one file for each group, `names` (which flag sets which argument), and `parser`, which joins them."""

from counting.command.flags.names import FLAGS, PUBLISHED, VERSION
from counting.command.flags.parser import flags_parser, read_flags

__all__ = ["FLAGS", "PUBLISHED", "VERSION", "flags_parser", "read_flags"]
