"""Records of published figures: how they are read, and how the runs behind them are repeated."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from counting.analysis import Analysis, analyze
from counting.setup import Setup
from torch_models.errors import UserError
from torch_models.fields.bundled import bundled_data
from torch_models.layout import Layout


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base class of the records in files of published figures."""


class RunSettings(Record, frozen=True, kw_only=True):
    """What a run was run with: a config of this project, some of its fields replaced, and fields of two structs."""

    config: str
    config_fields: dict[str, Any] = msgspec.field(default_factory=dict)
    setup: dict[str, Any]  # of `Setup`
    layout: dict[str, Any] = msgspec.field(default_factory=dict)  # of `Layout`; empty on one device

    def fields(self) -> dict[str, Any]:
        """The fields of the config, with those that are replaced."""
        fields = msgspec.json.decode((bundled_data() / f"{self.config}_config.json").read_bytes())
        return {**fields, **self.config_fields}

    def analyze(self, **options: Any) -> Analysis:
        """Measure it; `options` are those of `counting.analyze`. Raises `UserError` where a setting is refused."""
        return analyze(self.fields(), Setup(**self.setup), layout=self.given_layout(), **options)

    def given_layout(self) -> Layout | None:
        """The layout, not resolved; None on one device."""
        of_layout: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in self.layout.items()
        }
        return Layout(**of_layout) if of_layout else None


class RepeatedRow(Record, frozen=True, kw_only=True):
    """A published row that is repeated here; `not_run` says why it cannot be, where there is no `run`."""

    name: str
    source: str
    run: RunSettings | None = None
    not_run: str | None = None


class Named(Protocol):
    """A record with a name."""

    @property
    def name(self) -> str:
        """What it is called in reports and tests."""
        ...


T = TypeVar("T")


def read_records(file: str, type_: type[T]) -> T:
    """The records in `configs/<file>`, decoded as `type_`."""
    return msgspec.json.decode((bundled_data() / file).read_bytes(), type=type_)


def check_names(records: Sequence[Named]) -> None:
    """Stop if two records have one name."""
    assert len({record.name for record in records}) == len(records)


def check_rows(rows: Sequence[RepeatedRow]) -> None:
    """Stop if two rows have one name, or a row has both settings and a reason why it is not run, or neither."""
    check_names(rows)
    assert all((row.run is None) != (row.not_run is None) for row in rows)


def analysis_or_reason(row: RepeatedRow, **options: Any) -> tuple[Analysis | None, str | None]:
    """The analysis of the row's settings, or why there is none; a setting that is refused here is such a reason."""
    if row.run is None:
        return None, row.not_run
    try:
        return row.run.analyze(**options), None
    except UserError as error:
        return None, str(error)
