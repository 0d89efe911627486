"""What the tree promises: who may import whom, what is loaded without need, how large a folder and a file may be.

A new package needs a row in ROOMS. A new file of a package that is there needs none.
"""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
TOP_FILE = "model_training_cost_analysis"
PACKAGES = ("counting", "torch_models")
MOST_FILES, MOST_LINES = 15, 400
LISTS = {ROOT / "torch_models" / "families"}  # one entry a file: it may be long

# Packages -> what of ours they may import, wherever the import stands. Of the packages in one row, each may also import
# itself and those before it. A name stands for the module or the package with all in it, but `counting` and
# `torch_models` for their `__init__` alone, the public API.
ROOMS = {
    # What a model is. It never knows what a model costs.
    (
        "torch_models.errors torch_models.rope_scaling torch_models.spec torch_models.layout torch_models.stages"
        " torch_models.recomputed_layers"
    ): "",
    "torch_models.fields torch_models.families": (
        "torch_models.errors torch_models.rope_scaling torch_models.spec torch_models.families"
    ),
    "torch_models.first_values torch_models.modules torch_models.training": (
        "torch_models.errors torch_models.recomputed_layers torch_models.rope_scaling torch_models.spec"
        " torch_models.stages"
    ),
    "torch_models.parallel": (
        "torch_models.errors torch_models.layout torch_models.spec torch_models.stages torch_models.modules"
        " torch_models.training"
    ),
    "torch_models.builder torch_models.checkpoints": (
        "torch_models.errors torch_models.spec torch_models.stages torch_models.fields torch_models.first_values"
        " torch_models.modules torch_models.training"
    ),
    "torch_models": (
        "torch_models.errors torch_models.spec torch_models.fields torch_models.first_values torch_models.modules"
        " torch_models.training torch_models.builder torch_models.checkpoints"
    ),
    # Results as rows: numbers as they are. Every result knows how to become rows; a row knows no result.
    "counting.records": "",
    # What one step is run with, and what every witness says of it.
    "counting.recipes counting.setup counting.scans counting.counts counting.step counting.workspaces": (
        "counting.records counting.step torch_models.errors torch_models.recomputed_layers torch_models.spec"
    ),
    "counting.megatron_rules counting.pipeline_rules counting.layout": (
        "counting.setup torch_models.errors torch_models.layout torch_models.parallel torch_models.spec"
        " torch_models.stages"
    ),
    "counting.ranks": (
        "counting.counts counting.recipes counting.records counting.setup counting.step torch_models.layout"
        " torch_models.spec torch_models.stages"
    ),
    # What a step does, and how long that takes on a cluster.
    "counting.work": "counting.ranks",
    "counting.cost.rates counting.cost.hardware counting.cost.rates_of_gpu counting.cost.cluster"
    " counting.cost.step_time": (
        "counting.ranks counting.setup counting.step counting.work torch_models.errors torch_models.fields"
        " torch_models.layout"
    ),
    # The witnesses: formulas know no module and no measurement, measurements no formula.
    "counting.formulas": (
        "counting.counts counting.ranks counting.recipes counting.scans counting.setup counting.step"
        " torch_models.layout torch_models.spec torch_models.stages"
    ),
    "counting.measurements": (
        "counting.allocator counting.counts counting.ranks counting.recipes counting.records counting.setup"
        " counting.step counting.work counting.workspaces torch_models.errors torch_models.layout torch_models.spec"
        " torch_models.stages torch_models.recomputed_layers torch_models.modules torch_models.builder"
        " torch_models.checkpoints torch_models.parallel torch_models.training"
    ),
    "counting.via_transformers": (
        "counting.counts counting.measurements counting.recipes counting.scans counting.setup counting.step"
        " torch_models.checkpoints torch_models.errors torch_models.fields torch_models.modules"
        " torch_models.recomputed_layers torch_models.spec torch_models.training"
    ),
    # The caching allocator: events in, reserved bytes out.
    "counting.allocator": "",
    # Where they meet: only the analysis sees both.
    "counting.reconcile": "counting.counts counting.records",
    "counting.alternatives counting.reserved counting.timing counting.rank_analysis counting.analysis": (
        "counting.allocator counting.cost.cluster counting.cost.step_time counting.counts counting.formulas"
        " counting.layout counting.measurements counting.ranks counting.recipes counting.records counting.reconcile"
        " counting.scans counting.setup counting.step counting.via_transformers counting.work torch_models.errors"
        " torch_models.fields torch_models.layout torch_models.recomputed_layers torch_models.spec torch_models.stages"
    ),
    # Results of the analysis go in, and no witness.
    "counting.cost": (
        "counting.analysis counting.counts counting.ranks counting.step counting.recipes counting.records"
        " counting.setup torch_models.errors torch_models.fields torch_models.spec"
    ),
    "counting.published": (
        "counting.analysis counting.timing counting.cost counting.formulas.kv_cache counting.records counting.setup"
        " counting.step counting.work torch_models.errors torch_models.fields torch_models.layout torch_models.spec"
    ),
    # A user's own measurements: of steps, beside what the analysis says of them; and of the machine, which needs torch.
    "counting.calibration.machine": "counting.calibration.found torch_models.errors",
    "counting.calibration": (
        "counting.analysis counting.cost counting.records counting.setup counting.step torch_models.errors"
        " torch_models.layout torch_models.spec"
    ),
    "counting": (
        "counting.analysis counting.cost counting.measurements counting.reconcile counting.setup counting.step"
        " torch_models.errors torch_models.layout"
    ),
    # What a user sees: nothing imports the report but the command, and the command but the top file.
    "counting.report": (
        "counting.analysis counting.calibration counting.cost counting.counts counting.ranks counting.step"
        " counting.published counting.recipes counting.reconcile counting.records counting.setup torch_models.errors"
        " torch_models.fields torch_models.layout"
    ),
    "counting.command": (
        "counting.analysis counting.calibration counting.reserved counting.timing counting.cost counting.layout"
        " counting.published counting.recipes counting.reconcile counting.records counting.report counting.setup"
        " counting.step torch_models.errors torch_models.fields torch_models.layout torch_models.spec"
    ),
    TOP_FILE: "counting counting.command torch_models",
}

# Library -> the packages that may import it. The standard library and msgspec are everywhere.
LIBRARIES = {
    "torch": (
        "torch_models.first_values torch_models.modules torch_models.builder torch_models.training"
        " torch_models.checkpoints torch_models.parallel"
        " counting.calibration.machine counting.measurements counting.via_transformers"
    ),
    "fvcore": "counting.measurements",
    "safetensors": "torch_models.checkpoints",
    "transformers": "counting.via_transformers",
    "huggingface_hub": "counting.via_transformers",
    "rich": "counting.report",
    "matplotlib": "counting.report.figures",
    "numpy": (
        "counting.cost.fit.arrays counting.cost.fit.isoflop counting.cost.fit.minimiser counting.cost.fit.objective"
        " counting.cost.fit.parametric"
    ),
}
EVERYWHERE = sys.stdlib_module_names | {"msgspec"}

# The package of which these are imported, and nothing else, by all that stand outside it: functions, and the types of
# what they return.
SEALED = "counting.formulas.memory"
ITS_NAMES = {"simulate", "simulate_stage", "simulate_halves", "SimulatedPass", "SimulatedStage", "SimulatedHalves"}

FLAG = re.compile(r"(?<![\w-])--[A-Za-z]\w*")


@dataclass(frozen=True)
class Import:
    """One imported module; `names` are those taken from it, and `typing` says that it is imported for types alone."""

    module: str
    names: tuple[str, ...] = ()
    typing: bool = False


def python_files(*tops: str) -> list[Path]:
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in [*python_files(*PACKAGES), ROOT / f"{TOP_FILE}.py"]}
TEST_FILES = python_files("tests")
MODULES = {*SOURCES, *(module_name(path) for path in TEST_FILES)}
PARTS = {part: row for row in ROOMS for part in row.split()}


def imports_of(source: str) -> Iterator[Import]:
    """Every import in the source, wherever it stands; `from package import module` is an import of the module."""
    tree = ast.parse(source)
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, typing=id(node) in guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found = Import(inner) if inner in MODULES else Import(node.module, (alias.name,))
                yield Import(found.module, found.names, typing=id(node) in guarded)


@cache
def imports_in(path: Path) -> list[Import]:
    return list(imports_of(path.read_text(encoding="utf-8")))


IMPORTS = {module: imports_in(path) for module, path in SOURCES.items()}


def is_within(module: str, package: str) -> bool:
    return module == package or (package not in PACKAGES and module.startswith(f"{package}."))


def part_of(module: str) -> str:
    """The package or module in a row of ROOMS that this module belongs to; empty where it is in none."""
    return max((part for part in PARTS if is_within(module, part)), key=len, default="")


def allowed_by(module: str) -> list[str]:
    part = part_of(module)
    packages = PARTS[part].split()
    return [*packages[: packages.index(part) + 1], *ROOMS[PARTS[part]].split()]


def may_import(module: str, imported: Import) -> bool:
    library = imported.module.partition(".")[0]
    if library in EVERYWHERE:
        return True
    if library in LIBRARIES:
        return imported.typing or any(is_within(module, package) for package in LIBRARIES[library].split())
    return any(is_within(imported.module, package) for package in allowed_by(module))


@pytest.mark.parametrize("module", SOURCES)
def test_module_imports_only_what_it_may(module: str) -> None:
    assert part_of(module), "a new package: say in ROOMS what it may import"
    forbidden = {imported.module for imported in IMPORTS[module] if not may_import(module, imported)}
    assert forbidden == set(), f"{module} must not import these"


@pytest.mark.parametrize("row", ROOMS)
def test_row_of_rooms_is_needed(row: str) -> None:
    modules = [module for module in SOURCES if PARTS.get(part_of(module)) == row]
    assert {part_of(module) for module in modules} == set(row.split()), "a package without a file"
    imported = [imported.module for module in modules for imported in IMPORTS[module]]
    unused = {package for package in ROOMS[row].split() if not any(is_within(name, package) for name in imported)}
    assert unused == set(), f"no import of {row} needs these"


@pytest.mark.parametrize("library", LIBRARIES)
def test_row_of_libraries_is_needed(library: str) -> None:
    users = [module for module in SOURCES for i in IMPORTS[module] if i.module.partition(".")[0] == library]
    packages = LIBRARIES[library].split()
    assert [package for package in packages if not any(is_within(user, package) for user in users)] == []


@pytest.mark.parametrize(
    ("module", "imported", "expected"),
    [
        ("counting.formulas.flops", Import("collections.abc"), True),
        ("counting.formulas.flops", Import("torch.nn"), False),
        ("counting.formulas.flops", Import("torch.nn", typing=True), True),
        ("counting.formulas.flops", Import("counting.formulas.memory", ("simulate",)), True),
        ("counting.formulas.flops", Import("torch_models.modules.moe", typing=True), False),
        ("counting.measurements.trace", Import("fvcore.nn"), True),
        ("counting.measurements.trace", Import("counting.formulas.flops"), False),
        ("counting.cost.run", Import("counting.report.run"), False),
        ("torch_models.spec", Import("torch_models.errors"), True),
        ("torch_models.errors", Import("torch_models.spec"), False),
        ("torch_models.builder", Import("torch_models", ("read_spec",)), False),
        (TOP_FILE, Import("torch_models", ("build",)), True),
        (TOP_FILE, Import("torch_models.builder"), False),
    ],
)
def test_rules_mean_what_they_say(module: str, imported: Import, expected: bool) -> None:
    assert may_import(module, imported) is expected


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b as c\nfrom counting import counts\nfrom counting.counts import Counts\n"
    source += "def f():\n    from x import y\nif TYPE_CHECKING:\n    import z\n"
    assert set(imports_of(source)) == {
        Import("a.b"),
        Import("counting.counts"),
        Import("counting.counts", ("Counts",)),
        Import("x", ("y",)),
        Import("z", typing=True),
    }


def test_the_simulation_is_sealed() -> None:
    """Its own tests look inside it; nobody else does."""
    own_tests = f"tests.{SEALED}"
    files = {**SOURCES, **{module_name(path): path for path in TEST_FILES}}
    outside = {
        (module, imported.module, imported.names)
        for module, path in files.items()
        if not is_within(module, SEALED) and not is_within(module, own_tests)
        for imported in imports_in(path)
        if is_within(imported.module, SEALED)
        and not (imported.module == SEALED and imported.names and ITS_NAMES.issuperset(imported.names))
    }
    assert outside == set()


def test_nothing_slow_is_imported_before_it_is_needed() -> None:
    """All but the packages that build, measure, train, fit and draw: a budget is answered in a blink."""
    loaded_there = f"{LIBRARIES['torch']} {LIBRARIES['numpy']} counting.report.figures.drawing".split()
    slow = list(LIBRARIES)
    quick = [module for module in SOURCES if not any(is_within(module, package) for package in loaded_there)]
    script = f"""
import importlib, sys
for module in {quick}:
    importlib.import_module(module)
    loaded = [name for name in {slow} if name in sys.modules]
    if loaded:
        sys.exit(f"importing {{module}} loads {{', '.join(loaded)}}")
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.stderr == ""
    assert process.returncode == 0


def test_a_folder_holds_few_files() -> None:
    count: dict[Path, int] = defaultdict(int)
    for path in [*SOURCES.values(), *TEST_FILES]:
        count[path.parent] += 1
    full = {folder: files for folder, files in count.items() if files > MOST_FILES and folder not in LISTS}
    assert full == {}


def test_a_file_is_short() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in [*SOURCES.values(), *TEST_FILES]}
    assert {path: length for path, length in lines.items() if length > MOST_LINES} == {}


def test_no_library_file_names_a_flag() -> None:
    """Errors carry field, value and rule; the command line puts the flag to them."""
    named = {
        (module, flag)
        for module, path in SOURCES.items()
        if module != TOP_FILE and not is_within(module, "counting.command")
        for flag in FLAG.findall(path.read_text(encoding="utf-8"))
    }
    assert named == set()


def defined_names(source: str) -> Iterator[str]:
    """The public names that are defined at the top level: functions, classes, constants."""
    for node in ast.parse(source).body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            targets = [ast.Name(node.name)]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        names = {inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)}
        yield from (name for name in names if not name.startswith("_"))


def test_names_are_found_at_the_top_level_alone() -> None:
    source = "import a\nA: int = 1\nB, (C, _D) = 1, (2, 3)\nclass E:\n    F = 1\ndef g():\n    H = 1\n__all__ = []\n"
    assert set(defined_names(source)) == {"A", "B", "C", "E", "g"}


def test_one_name_means_one_thing() -> None:
    """No top-level name stands in two files of `counting`, unless they are a formula and its measurement."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module, path in SOURCES.items():
        if module.partition(".")[0] == "counting":
            for name in set(defined_names(path.read_text(encoding="utf-8"))):
                homes[name].append(module)
    alike = {name: modules for name, modules in homes.items() if len(modules) > 1}
    pair = ["counting.formulas", "counting.measurements"]
    assert {name: modules for name, modules in alike.items() if [part_of(home) for home in modules] != pair} == {}


def test_no_test_imports_another() -> None:
    """What two of them need stands in a module of helpers, whose name does not begin with `test_`."""
    imported = {
        (path, imported.module)
        for path in TEST_FILES
        for imported in imports_in(path)
        if imported.module.rpartition(".")[2].startswith("test_")
    }
    assert imported == set()


def test_tests_mirror_the_packages() -> None:
    """A folder of tests is named as the package that it tests; one tests whole models in torch's own surroundings."""
    folders = {path.parent.relative_to(TESTS) for path in TEST_FILES if path.parent != TESTS}
    others = {folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()}
    assert others == {Path("torch_models/ecosystem")}
