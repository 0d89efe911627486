import json
from functools import cache
from pathlib import Path

import msgspec
import pytest

from counting.command.main import main
from counting.cost.hardware import find_gpu
from counting.published import memory
from counting.published.memory import (
    BYTES_PER_GIB,
    ExaminedMemory,
    MemoryFigure,
    PublishedMemory,
    StatedMemory,
    examine_memory,
    load_published_memory,
)
from counting.published.rows import RunSettings
from counting.report.printing import print_parts
from counting.report.published.memory import memory_cells, published_memory_parts
from counting.report.screen.lines import Lines
from counting.report.screen.published import published_memory_screen
from counting.setup import Setup
from torch_models.fields.bundled import bundled_data
from torch_models.layout import Layout

ROWS = load_published_memory()
SMALL = RunSettings(
    config="llama_3_2_1b",
    config_fields={"num_hidden_layers": 2, "vocab_size": 1024},
    setup={"sequence_length": 256, "optimizer": "adamw"},
)


def row_of(run: RunSettings | None, not_run: str | None = None) -> PublishedMemory:
    return PublishedMemory(
        name="small",
        source="by hand",
        gpu="H100",
        stated=(StatedMemory(quantity="allocated", gib=2.0), StatedMemory(quantity="reserved", gib=2.0)),
        run=run,
        not_run=not_run,
    )


@pytest.fixture(scope="module")
def examined() -> ExaminedMemory:
    return examine_memory(row_of(SMALL))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_has_a_source_and_settings_or_a_reason(row: PublishedMemory) -> None:
    assert row.source.startswith("github.com/")
    find_gpu(row.gpu)
    assert row.stated
    assert all(1 < stated.gib < 192 for stated in row.stated)
    assert (row.run is None) != (row.not_run is None)
    if row.run is not None:
        assert (bundled_data() / f"{row.run.config}_config.json").is_file()
        assert set(row.run.setup) <= {field.name for field in msgspec.structs.fields(Setup)}
        assert set(row.run.layout) <= {field.name for field in msgspec.structs.fields(Layout)}
    if len(row.stated) > 1:
        by_quantity = {stated.quantity: stated.gib for stated in row.stated}
        assert by_quantity["allocated"] < by_quantity["reserved"]


def test_the_printed_figures() -> None:
    """Some, typed again from the sources."""
    stated = {row.name: {each.quantity: each.gib for each in row.stated} for row in ROWS}
    assert stated["torchtitan, Llama-3.1 8B, FSDP 8"] == {"reserved": 82.4}
    assert stated["torchtitan, Llama-3.1 8B, FSDP 8, compiled"] == {"reserved": 77.0}
    assert stated["torchtitan, Llama-3.1 8B, FSDP 128"] == {"reserved": 67.0}
    assert stated["Megatron, Llama-3 70B of 12 layers, TP 8"] == {"allocated": 28.29, "reserved": 29.12}
    assert stated["Megatron, DeepSeek-V3 of 4 layers, EP 8"] == {"allocated": 104.3, "reserved": 110.18}


def test_figures_are_those_of_the_analysis(examined: ExaminedMemory) -> None:
    found = SMALL.analyze(reserved=True).memory
    assert found is not None
    assert found.reserved_parts is not None
    allocated, reserved = examined.figures
    assert (allocated.low_bytes, allocated.high_bytes) == (found.reserved_parts.peak_allocated_bytes,) * 2
    assert (reserved.low_bytes, reserved.high_bytes) == found.reserved_bytes
    assert found.peak_bytes < allocated.low_bytes < reserved.low_bytes
    middle = (reserved.low_bytes + reserved.high_bytes) / 2 / BYTES_PER_GIB
    assert reserved.relative_difference == pytest.approx(middle / 2.0 - 1)
    assert examined.setup is not None
    assert (examined.setup.sequence_length, examined.layout, examined.not_run) == (256, None, None)


def test_a_setting_that_is_refused_is_the_reason() -> None:
    refused = msgspec.structs.replace(SMALL, setup={"sequence_length": 256, "kernels": "magic"})
    found = examine_memory(row_of(refused))
    assert (found.figures, found.setup) == ((), None)
    assert found.not_run is not None
    assert "magic" in found.not_run


def test_a_row_that_is_not_run_says_why() -> None:
    found = examine_memory(row_of(None, "its buffers are not modelled"))
    assert (found.figures, found.config, found.not_run) == ((), None, "its buffers are not modelled")


def test_reports(examined: ExaminedMemory, capsys: pytest.CaptureFixture[str]) -> None:
    not_run = examine_memory(msgspec.structs.replace(row_of(None, "it has no settings"), name="other"))
    print_parts(published_memory_parts([examined, not_run]))
    out = " ".join(capsys.readouterr().out.split())
    for figure in examined.figures:
        assert all(cell in out for cell in memory_cells(figure))
    assert "Not run: other: it has no settings." in out
    assert "small; other: by hand." in out

    lines = Lines(100)
    published_memory_screen(lines, [examined, not_run])
    assert lines.lines[0].startswith("2 published peaks")
    assert [line.split()[:3] for line in lines.lines[2:4]] == [
        ["small", "H100", "allocated"],
        ["small", "H100", "reserved"],
    ]
    assert "Not run: 1 rows; the details say why." in " ".join(" ".join(lines.lines).split())


def test_as_a_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "load_published_memory", lambda: (row_of(None, "it has no settings"), row_of(SMALL)))
    assert main(["--published", "memory", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    not_run, run = document["published"]
    assert (not_run["not_run"], not_run["figures"]) == ("it has no settings", [])
    assert [figure["quantity"] for figure in run["figures"]] == ["allocated", "reserved"]
    assert run["setup"]["sequence_length"] == 256
    assert main(["--published", "memory", "--details"]) == 0
    assert "Stated peaks of memory, and ours, GiB" in capsys.readouterr().out
    assert main(["--published", "weather"]) == 2
    assert "choose from bills, memory, throughput" in capsys.readouterr().err


def test_cells_of_a_range() -> None:
    figure = MemoryFigure(
        quantity="reserved",
        stated_gib=82.4,
        low_bytes=82 * BYTES_PER_GIB,
        high_bytes=83 * BYTES_PER_GIB,
        relative_difference=82.5 / 82.4 - 1,
    )
    assert memory_cells(figure) == ("82.40", "82.00-83.00", "+0.12 %")


# What eager rows of torchtitan's settings must come to, without tuning; the others are kept to check with.
BOUNDS = {
    "torchtitan, Llama-3.1 8B, FSDP 8": 0.005,
    "torchtitan, Llama-3.1 8B, FSDP 8, compiled": 0.03,
    "torchtitan, Llama-3.1 8B, FSDP 128": 0.005,
    "torchtitan, Llama-3.1 8B, FSDP 128, compiled": 0.03,
    "torchtitan 3/2024, Llama-2 7B, FSDP 8": 0.03,
}


@cache
def examined_row(name: str) -> ExaminedMemory:
    return examine_memory(next(row for row in ROWS if row.name == name))


def rows_of_the_page() -> list[list[str]]:
    """The cells of the table in docs/published.md."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "published.md").read_text(encoding="utf-8")
    _, table = page.split("| run | bytes | printed | predicted | difference |\n|---|---|---|---|---|\n")
    return [line.strip("| ").split(" | ") for line in table.partition("\n\n")[0].splitlines()]


@pytest.mark.sweep
@pytest.mark.parametrize("cells", rows_of_the_page(), ids=lambda cells: cells[0])
def test_the_page_has_what_is_predicted(cells: list[str]) -> None:
    found = examined_row(cells[0])
    assert cells in [[found.name, figure.quantity, *memory_cells(figure)] for figure in found.figures]


@pytest.mark.sweep
@pytest.mark.parametrize("name", BOUNDS)
def test_whole_models_come_near_to_what_was_printed(name: str) -> None:
    found = examined_row(name)
    reserved = next(figure for figure in found.figures if figure.quantity == "reserved")
    assert abs(reserved.relative_difference) < BOUNDS[name]
