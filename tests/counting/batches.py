"""An analysis with another batch, for tests of what follows from the number of tokens of a step."""

import msgspec

from counting.analysis import Analysis


def with_micro_batches(analysis: Analysis, number: int) -> Analysis:
    """The same analysis, its step said to have this many micro-batches; its memory stays that of one."""
    setup = msgspec.structs.replace(
        analysis.setup, micro_batches=number, global_batch_tokens=number * analysis.setup.tokens
    )
    return msgspec.structs.replace(analysis, setup=setup)
