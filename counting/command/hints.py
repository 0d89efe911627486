"""Rewrites errors of the library for the command line: flags replace the names of the library's arguments."""

import re
from collections.abc import Collection
from typing import NamedTuple

from counting.command.flags import FLAGS
from counting.step.time import NotTimed
from torch_models.errors import ArgumentError, CheckpointError, ConfigError, UserError, show_name, show_value


class Hint(NamedTuple):
    """A part of an error's rule, and the text that replaces it."""

    field: str | None  # the argument or config field of the error; None for any
    words: str  # regular expression that matches a part of the rule
    instead: str  # replacement, in the syntax of re.sub
    alone: bool = False  # print the rule without "flag = value:", because no flag has that value


GIVE_RATES = 'give "rates" in a --cluster file, as calibrate writes it, or in an entry of --gpu_file'
GIVEN_OF_A_LINK = "gb_per_s, of one GPU in one direction"
HINTS = (
    Hint("max_position_embeddings", r"give sequence_length$", "give --seq_len"),
    Hint(None, r"name it in ignore_fields$", "name it in --ignore_fields"),
    Hint(None, r"give sequence_length, of at most ([\d,]+)$", r"give --seq_len, of at most \1"),
    Hint("model_type", r"give text_only$", "give --text_only"),
    Hint("mtp", r"^(.+): leave it open, or give false$", r"--mtp = on: \1: leave it out, or say off", alone=True),
    Hint("micro_batches", r"\bor global_batch_tokens of\b", "or --global_batch_tokens of"),
    Hint("gpu_hours", r"say so \(precision fp8\)$", "give --precision fp8"),
    Hint("tokens_per_second_per_gpu", r"say so \(precision fp8\)$", "give --precision fp8"),
    Hint("tp", r"set sequence_parallel to false$", "say sp=off"),
    *(
        Hint(
            link,
            rf"of the links of (.+) there is unknown: give {GIVEN_OF_A_LINK}$",
            rf'of the links of \1 there is unknown: give it in a --cluster file, as {{"gpu": "\1", "{link}": '
            rf'{{"gb_per_s": {speed}}}}}, of one GPU in one direction',
        )
        for link, speed in (("node_link", 450), ("network_link", 50))
    ),
    Hint("gpus", r"give an entry with rates$", GIVE_RATES),
    Hint("execution", r"ask for one of them, or give eager$", "give --reserved on or --gpus too, or eager"),
    Hint("prices_usd_per_hour", r"^no price is known for (.+ .+):.*", r'\g<0>, as --gpu_prices "\1=2.50"', alone=True),
    Hint("prices_usd_per_hour", r"^no price is known for (.+):.*", r"\g<0>, as --gpu_prices \1=2.50", alone=True),
)

# The argument that has no value -> why a step is not timed, and what to give, without the GPU's name.
REASONS = {
    "gpus": ("no rates of them or their architecture are known", GIVE_RATES),
    "node_link": (
        "the speed of links within a node is unknown",
        'give it in a --cluster file, as {"gpu": ..., "node_link": {"gb_per_s": 450}}',
    ),
    "network_link": (
        "the speed of links across nodes is unknown",
        'give it in a --cluster file, as {"gpu": ..., "network_link": {"gb_per_s": 50}}',
    ),
}
NO_FP8 = "no rate of products in FP8 is known"
GIVE_FP8 = 'give another --precision, or "rates" with "fp8" in a --cluster file'
ON_OFF = {"true": "on", "false": "off"}


def error_line(error: UserError, plan: str | None = None, from_plan: Collection[str] = ()) -> str:
    """The error as one line to print; if the flag comes from the plan, with the plan's name."""
    text = str(error)
    if isinstance(error, ArgumentError | ConfigError):
        rule, alone = _in_flags(error.field, error.rule)
        if alone:
            text = rule
        elif isinstance(error, ArgumentError):
            flag = FLAGS.get(error.field) or show_name(error.field)
            text = f"{_typed(flag, error.value)}: {rule}"
            if plan is not None and flag.removeprefix("--").partition(" ")[0] in from_plan:
                text = f"{show_name(plan)}: {text}"
        else:
            text = text.removesuffix(error.rule) + rule
    if isinstance(error, CheckpointError):
        text += "; a config.json in place of its folder is read without the weights"
    return f"error: {text}".replace("\n", " ")


def why_not_timed(error: UserError, gpu: str, *, of_run: bool) -> NotTimed:
    """Why the time of a step is not worked out on `gpu`, in words that are equal of GPUs that lack the same.

    With `of_run` it says also what the remedy does for a run.
    """
    if isinstance(error, ArgumentError):
        reason, remedy = REASONS.get(error.field) or (_in_flags(error.field, error.rule)[0], "")
    else:
        reason, remedy = str(error).removeprefix(f"{gpu}: "), ""
        if reason.startswith(NO_FP8):
            reason, remedy = NO_FP8, GIVE_FP8
    return NotTimed(
        gpu=gpu, reason=reason, remedy=f"{remedy}, and the run's MFU is predicted" if remedy and of_run else remedy
    )


def _typed(flag: str, value: object) -> str:
    """The flag with its value; of --layout, the axis as it is typed."""
    shown = show_value(value)
    if not flag.startswith("--layout "):
        return f"{flag} = {shown}"
    return f"{flag}={ON_OFF.get(shown, shown)}"


def _in_flags(field: str, rule: str) -> tuple[str, bool]:
    """(The rule with its hint applied, `Hint.alone`)."""
    for hint in HINTS:
        if hint.field in (None, field) and re.search(hint.words, rule):
            return re.sub(hint.words, hint.instead, rule), hint.alone
    return rule, False
