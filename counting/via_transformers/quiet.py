"""Runs transformers without terminal output and without network requests, and restores the process afterwards."""

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_ONE_AT_A_TIME = threading.RLock()  # the streams, filters and levels below are global to the process


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context in which transformers prints nothing to the user's terminal and sends no request to a server.

    One thread at a time. If `counting.measurements.meta_device.measuring` is needed too, enter that first.
    """
    logger = logging.getLogger("transformers")
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        stack.callback(logging.disable, logging.root.manager.disable)
        stack.callback(setattr, logger, "disabled", logger.disabled)
        logging.disable(logging.CRITICAL)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # Imported here because both keep the state at import: the output stream, and whether the hub is offline.
        with contextlib.suppress(ImportError):
            import transformers.utils.logging  # noqa: F401 - its handler keeps the current stream
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
