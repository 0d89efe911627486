"""The default sequence length: one for all compared models, and a warning if it is long."""

from collections.abc import Sequence

import msgspec

from counting.analysis import Analysis, analyze
from counting.setup import Setup
from torch_models.fields.config import ForeignConfig
from torch_models.spec import ModelSpec

LONGEST_WITHOUT_WARNING = 8192  # tokens; most models are pre-trained at less, even if the config allows more


def common_length(models: Sequence[ModelSpec | ForeignConfig], setup: Setup) -> tuple[Setup, str | None]:
    """The setup at the smallest default length of the models, and the field and model that it comes from.

    A family that goes through transformers is analysed first, because transformers has the defaults of its config.
    Returns `setup` and None if no model has a default.
    """
    defaults = []
    for model in models:
        resolved = analyze(model, setup, step=False).setup if isinstance(model, ForeignConfig) else model
        if resolved.sequence_length is not None:
            defaults.append((resolved.sequence_length, f"{resolved.sequence_length_source} of {model.name}"))
    if not defaults:
        return setup, None
    length, source = min(defaults, key=lambda default: default[0])
    return msgspec.structs.replace(setup, sequence_length=length), source


def with_length_from(analysis: Analysis, source: str) -> Analysis:
    """The same analysis with `source` as the source of its sequence length."""
    setup = msgspec.structs.replace(analysis.setup, sequence_length_source=source)
    return msgspec.structs.replace(analysis, setup=setup)


def length_warnings(analyses: Sequence[Analysis]) -> list[str]:
    """A warning for each model with a default length of more than `LONGEST_WITHOUT_WARNING` tokens."""
    return [
        f"{analysis.name}: {analysis.sequence_length:,} tokens a sequence ({analysis.setup.sequence_length_source}), "
        "perhaps more than it is trained at, and FLOPs and money grow with it; --seq_len sets the length"
        for analysis in analyses
        if analysis.sequence_length > LONGEST_WITHOUT_WARNING and analysis.setup.sequence_length_source != "given"
    ]


def comparison_notes(analyses: Sequence[Analysis]) -> list[str]:
    """A note with the common sequence length, if it was chosen from the models' defaults."""
    first = analyses[0]
    if first.setup.sequence_length_source == "given":
        return []
    return [
        f"the models are compared at {first.sequence_length:,} tokens a sequence, their smallest default "
        f"({first.setup.sequence_length_source}); --seq_len sets another"
    ]
