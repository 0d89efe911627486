"""transformers at work without a word to the user's terminal or to a server, and the process as it was afterwards."""

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_ONE_AT_A_TIME = threading.RLock()  # the streams, filters and levels below are states of the whole process


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that transformers says reaches the user's terminal, and it asks no server anything.

    One thread at a time. Whoever needs `counting.measurements.meta_device.measuring` too enters that first.
    """
    logger = logging.getLogger("transformers")
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        stack.callback(logging.disable, logging.root.manager.disable)
        stack.callback(setattr, logger, "disabled", logger.disabled)
        logging.disable(logging.CRITICAL)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # Both keep for good what they find when they are imported: the streams, and whether servers may be asked.
        with contextlib.suppress(ImportError):
            import transformers.utils.logging  # noqa: F401 - for its handler, which writes to the stream of now
        with contextlib.suppress(ImportError):
            from huggingface_hub import constants

            stack.enter_context(_offline(constants))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


@contextlib.contextmanager
def _offline(constants: Any) -> Iterator[None]:
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
