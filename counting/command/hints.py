"""The library's errors in the command's words: an argument is called as its flag, and a remedy names flags too."""

import re
from collections.abc import Collection
from typing import NamedTuple

from counting.command.flags import FLAGS
from torch_models.errors import ArgumentError, ConfigError, UserError, show_name, show_value


class Hint(NamedTuple):
    """Words of a rule, and what the command says in their place."""

    field: str  # whose rule it is: an argument, or a field of a config
    words: str  # a regular expression
    instead: str  # as of re.sub
    alone: bool = False  # the rule is all that is said, where no flag has the value that it speaks of


HINTS = (
    Hint("max_position_embeddings", r"give sequence_length$", "give --seq_len"),
    Hint("mtp", r"^(.+): leave it open, or give false$", r"--mtp = on: \1: leave it out, or say off", alone=True),
    Hint("tokens", r"^must be at least one sequence .*", r"\g<0>; --seq_len sets its length"),
    Hint("global_batch_tokens", r"^must be at least one sequence .*", r"\g<0>; --seq_len sets its length"),
    Hint("global_batch_tokens", r"must be at most tokens\b", "must be at most --tokens"),
    Hint("gpu_hours", r"say so \(precision fp8\)$", "give --precision fp8"),
    Hint("tokens_per_second_per_gpu", r"say so \(precision fp8\)$", "give --precision fp8"),
    Hint("prices_usd_per_hour", r"^no price is known for (.+):.*", r"\g<0>, as --gpu_prices \1=2.50", alone=True),
)


def error_line(error: UserError, plan: str | None = None, from_plan: Collection[str] = ()) -> str:
    """The error as the command prints it, on one line; of a flag that stands in the plan, with the plan's name."""
    text = str(error)
    if isinstance(error, ArgumentError | ConfigError):
        rule, alone = _in_flags(error.field, error.rule)
        if alone:
            text = rule
        elif isinstance(error, ArgumentError):
            flag = FLAGS.get(error.field) or show_name(error.field)
            text = f"{flag} = {show_value(error.value)}: {rule}"
            if plan is not None and flag.removeprefix("--").partition(" ")[0] in from_plan:
                text = f"{show_name(plan)}: {text}"
        else:
            text = text.removesuffix(error.rule) + rule
    return f"error: {text}".replace("\n", " ")


def _in_flags(field: str, rule: str) -> tuple[str, bool]:
    """The rule with its hint, and whether it stands alone."""
    for hint in HINTS:
        if hint.field == field and re.search(hint.words, rule):
            return re.sub(hint.words, hint.instead, rule), hint.alone
    return rule, False
