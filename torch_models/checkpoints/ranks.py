"""The processes that save together: they agree on errors, so that none of them waits for one that gave up."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from torch_models.errors import CheckpointError

T = TypeVar("T")


class Ranks:
    """All ranks of torch's default process group; one rank where there is no group.

    `agreed` and `from_first` are collective: every rank calls them, in the same order.
    """

    def __init__(self) -> None:
        in_group = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if in_group else 0
        self.count = dist.get_world_size() if in_group else 1

    def agreed(self, work: Callable[[], T]) -> T:
        """Return the result of `work` on this rank, once it has succeeded on all of them.

        If it fails, each rank on which it failed raises its own error, and the others a `CheckpointError` with the
        first of them.
        """
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        errors = self._gather(None if error is None else str(error) or type(error).__name__)
        if error is not None:
            raise error
        for rank, text in enumerate(errors):
            if text is not None:
                raise CheckpointError(f"rank {rank}: {text}")
        return result  # type: ignore[return-value]

    def from_first(self, work: Callable[[], str]) -> str:
        """Return on every rank the text that `work` returns on rank 0; errors are as in `agreed`."""
        text = self.agreed(lambda: work() if self.rank == 0 else "")
        return self._gather(text)[0] or ""

    def require_same(self, what: str, text: str) -> None:
        """Raise `CheckpointError` on every rank if `text` is not the same on all of them."""
        texts = self._gather(text)
        for rank, other in enumerate(texts):
            if other != texts[0]:
                raise CheckpointError(f"{what}: ranks 0 and {rank} differ: {texts[0]} and {other}")

    def _gather(self, text: str | None) -> list[str | None]:
        if self.count == 1:
            return [text]
        texts: list[str | None] = [None] * self.count
        dist.all_gather_object(texts, text)
        return texts
