"""Who may import whom, and what must not be loaded until it is needed.

A new module needs a line in ALLOWED; it must also import without torch unless it stands in NEEDS_TORCH.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from torch_models.fields.config import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
COMMAND_LINE = "model_training_cost_analysis"
PACKAGES = ["configs", "counting", "torch_models"]

# Module -> all that it may import, wherever the import stands; of the standard library, anything.
# `package.*` is the package and everything in it. What a model is never knows what it costs.
ALLOWED = {
    COMMAND_LINE: "counting.* torch_models.* configs msgspec",
    "configs": "",
    # What a model is.
    "torch_models": "torch torch_models.*",
    "torch_models.errors": "",
    "torch_models.spec": "msgspec torch_models.errors",
    "torch_models.checkpoint_names": "torch",  # for a type; see NEEDS_TORCH
    "torch_models.families": "",
    "torch_models.known_fields": "",
    "torch_models.config_file": "configs torch_models.errors",
    "torch_models.config": (
        "msgspec torch_models.checkpoint_names torch_models.config_file torch_models.errors torch_models.families"
        " torch_models.known_fields torch_models.spec"
    ),
    "torch_models.rope_fields": "msgspec torch_models.config torch_models.errors torch_models.spec",
    "torch_models.common_fields": (
        "torch_models.config torch_models.errors torch_models.rope_fields torch_models.spec"
    ),
    "torch_models.latent_attention": (
        "msgspec torch_models.config torch_models.errors torch_models.rope_fields torch_models.spec"
    ),
    "torch_models.layers": "torch torch_models.spec",
    "torch_models.flash_attention": "torch",
    "torch_models.recompute": "torch torch_models.errors torch_models.spec",
    "torch_models.attention": (
        "torch torch_models.flash_attention torch_models.layers torch_models.recompute torch_models.spec"
    ),
    "torch_models.moe": "torch torch_models.layers torch_models.spec",
    "torch_models.decoder": (
        "torch torch_models.attention torch_models.layers torch_models.moe torch_models.recompute torch_models.spec"
    ),
    "torch_models.training": (
        "torch torch_models.decoder torch_models.layers torch_models.recompute torch_models.spec"
    ),
    "torch_models.builder": ("torch torch_models.decoder torch_models.errors torch_models.layers torch_models.spec"),
    "torch_models.checkpoint_files": "torch safetensors torch_models.errors",
    "torch_models.checkpoint": "torch torch_models.*",
    # What it costs by formula: from the spec, blind to the modules.
    "counting": "",
    "counting.counts": "msgspec",
    "counting.analytic": "msgspec counting.counts torch_models.spec",
    "counting.tape": "",
    "counting.tape_ops": "counting.tape",
    "counting.analytic_memory_blocks": "counting.tape counting.tape_ops torch_models.spec",
    "counting.analytic_memory_attention": (
        "counting.analytic_memory_blocks counting.tape counting.tape_ops torch_models.spec"
    ),
    "counting.analytic_memory_experts": (
        "counting.analytic_memory_blocks counting.tape counting.tape_ops torch_models.spec"
    ),
    "counting.analytic_memory": (
        "counting.analytic counting.analytic_memory_attention counting.analytic_memory_blocks"
        " counting.analytic_memory_experts counting.counts counting.tape counting.tape_ops torch_models.spec"
    ),
    "counting.step_profile": "msgspec counting.counts counting.precision torch_models.errors torch_models.spec",
    "counting.analytic_step_memory": (
        "counting.analytic counting.analytic_memory counting.analytic_memory_blocks counting.counts"
        " counting.step_profile counting.tape counting.tape_ops torch_models.spec"
    ),
    "counting.training_memory": (
        "msgspec counting.analytic_step_memory counting.reconcile counting.step_memory counting.step_profile"
        " torch_models.spec"
    ),
    "counting.analytic_training": "msgspec counting.analytic counting.counts torch_models.spec",
    "counting.derived": "msgspec counting.analytic counting.analytic_memory counting.counts torch_models.spec",
    # What it costs as measured: from the modules, blind to the formulas.
    "counting.components": "torch torch_models.* counting.counts",
    "counting.meta_kernels": "torch",
    "counting.parameters": "torch torch_models.* counting.components counting.counts",
    "counting.flops": "torch fvcore torch_models.* counting.components counting.counts counting.meta_kernels",
    "counting.memory": "torch torch_models.* counting.components counting.counts counting.meta_kernels",
    "counting.optimizer_memory": "torch counting.memory counting.meta_kernels counting.precision",
    "counting.step_memory": (
        "torch msgspec torch_models.* counting.counts counting.measured counting.memory counting.meta_kernels"
        " counting.optimizer_memory counting.parameters counting.step_profile"
    ),
    "counting.measured": (
        "torch msgspec torch_models.* counting.counts counting.flops counting.memory counting.meta_kernels"
        " counting.parameters"
    ),
    "counting.step_flops": (
        "torch msgspec torch_models.* counting.components counting.counts counting.flops counting.measured"
        " counting.meta_kernels"
    ),
    # Of families without modules and formulas: from transformers, which is imported on this path alone.
    "counting.foreign_fields": "transformers torch_models.errors torch_models.known_fields",
    "counting.foreign_config": (
        "msgspec transformers counting.foreign_fields counting.foreign_share torch_models.config torch_models.errors"
        " torch_models.known_fields"
    ),
    "counting.foreign_share": "torch transformers counting.flops",
    "counting.foreign_ops": "torch counting.flops",
    "counting.foreign_structure": "torch torch_models.errors",
    "counting.through_transformers": (
        "torch msgspec transformers torch_models.errors counting.components counting.counts counting.flops"
        " counting.foreign_config counting.foreign_ops counting.foreign_structure counting.memory"
        " counting.meta_kernels counting.parameters"
    ),
    # Where the two meet, knowing only what each hands over.
    "counting.reconcile": "msgspec counting.counts counting.step_profile torch_models.errors",
    "counting.training_step": (
        "msgspec counting.analytic_training counting.counts counting.precision counting.reconcile counting.step_flops"
        " torch_models.errors torch_models.spec"
    ),
    "counting.analysis": (
        "msgspec counting.counts counting.derived counting.foreign_config counting.measured counting.reconcile"
        " counting.step_profile counting.through_transformers counting.training_memory counting.training_step"
        " torch_models.config torch_models.errors torch_models.spec"
    ),
    # What a budget buys.
    "counting.hardware": "msgspec configs torch_models.errors",
    "counting.precision": "msgspec torch_models.errors",
    "counting.gpt_activations": "torch_models.spec",
    "counting.scaling_law": "msgspec torch_models.errors",
    "counting.training_cost": "msgspec counting.counts counting.hardware counting.scaling_law torch_models.errors",
    "counting.design": (
        "msgspec counting.analytic counting.counts counting.derived counting.hardware counting.scaling_law"
        " counting.training_cost torch_models.errors torch_models.spec"
    ),
    "counting.designed": (
        "counting.analysis counting.design counting.training_cost torch_models.config torch_models.spec"
    ),
    # What a run costs, from a model as analysed.
    "counting.amounts": "torch_models.errors",
    "counting.kv_cache": "torch_models.spec",
    "counting.training_flops": "counting.analysis counting.counts",
    "counting.training_run": (
        "msgspec counting.analysis counting.hardware counting.precision counting.training_cost counting.training_flops"
        " torch_models.errors counting.counts counting.step_profile"
    ),
    "counting.budget_on_model": (
        "msgspec counting.analysis counting.scaling_law counting.training_cost counting.training_flops"
        " torch_models.errors"
    ),
    "counting.comparison": (
        "msgspec counting.analysis counting.training_cost counting.training_flops counting.training_run"
        " torch_models.errors"
    ),
    "counting.published_runs": (
        "msgspec configs counting.analysis counting.hardware counting.kv_cache counting.training_cost"
        " counting.training_flops counting.training_run torch_models.config torch_models.spec"
    ),
    "counting.claim": (
        "msgspec counting.analysis counting.design counting.hardware counting.published_runs counting.training_cost"
        " counting.training_flops counting.training_run torch_models.config"
    ),
    # What leaves the program.
    "counting.output_file": "torch_models.errors",
    # The only ones that format: they know the results, not how they came about.
    "counting.report_format": "rich",
    "counting.report_training": "rich counting.training_step",
    "counting.report_memory": "rich counting.hardware counting.report_format counting.training_memory",
    "counting.report": (
        "msgspec rich counting.analysis counting.budget_on_model counting.claim counting.comparison counting.counts"
        " counting.design counting.hardware counting.published_runs counting.reconcile counting.report_format"
        " counting.report_memory counting.report_training"
        " counting.scaling_law counting.training_cost counting.training_run torch_models.errors torch_models.spec"
    ),
    "counting.report_run": (
        "rich counting.budget_on_model counting.comparison counting.precision counting.report_format"
        " counting.scaling_law counting.training_cost counting.training_flops counting.training_run"
    ),
    "counting.report_published": (
        "counting.claim counting.published_runs counting.report_format counting.report_run counting.training_flops"
    ),
}

# Every family reads fields into specs, and nothing else.
FAMILY = (
    "msgspec torch_models.checkpoint_names torch_models.common_fields torch_models.config torch_models.errors"
    " torch_models.latent_attention torch_models.rope_fields torch_models.spec torch_models.families.deepseek_v3"
)
ALLOWED |= {f"torch_models.families.{family}": FAMILY for family in FAMILIES}

# All others import without it, and without anything else that is slow: a budget is answered in a blink.
NEEDS_TORCH = {
    "torch_models.attention",
    "torch_models.builder",
    "torch_models.checkpoint",
    "torch_models.checkpoint_files",
    "torch_models.decoder",
    "torch_models.flash_attention",
    "torch_models.layers",
    "torch_models.moe",
    "torch_models.recompute",
    "torch_models.training",
    "counting.components",
    "counting.flops",
    "counting.foreign_ops",
    "counting.foreign_share",
    "counting.foreign_structure",
    "counting.measured",
    "counting.memory",
    "counting.meta_kernels",
    "counting.optimizer_memory",
    "counting.parameters",
    "counting.step_memory",
    "counting.step_flops",
    "counting.through_transformers",
}
SLOW = ["fvcore", "numpy", "rich", "safetensors", "torch", "transformers"]


def source_files() -> dict[str, Path]:
    """Module name -> file, for every module of ours."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")] + [ROOT / f"{COMMAND_LINE}.py"]
    files = {}
    for path in sorted(paths):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


SOURCES = source_files()


def imported_modules(source: str) -> Iterator[str]:
    """Every module that is imported anywhere in the source, inside functions and for type checking too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in SOURCES else node.module


def is_allowed(imported: str, allowed: str) -> bool:
    top = imported.partition(".")[0]
    if top in sys.stdlib_module_names:
        return True
    ours = top == COMMAND_LINE or top in PACKAGES
    return f"{top}.*" in allowed.split() or (imported if ours else top) in allowed.split()


@pytest.mark.parametrize("module", SOURCES)
def test_module_imports_only_what_it_may(module: str) -> None:
    assert module in ALLOWED, f"{SOURCES[module]}: a new module; say in ALLOWED what it may import"
    imported = imported_modules(SOURCES[module].read_text(encoding="utf-8"))
    forbidden = {name for name in imported if not is_allowed(name, ALLOWED[module])}
    assert forbidden == set(), f"{module} must not import these"


@pytest.mark.parametrize(
    ("imported", "allowed", "expected"),
    [
        ("collections.abc", "", True),
        ("torch", "", False),
        ("torch.nn.functional", "torch", True),
        ("torch_models.spec", "torch", False),
        ("torch_models.spec", "torch_models.spec", True),
        ("torch_models.layers", "torch_models.spec", False),
        ("torch_models.layers", "torch_models.*", True),
        ("torch_models", "torch_models.*", True),
        ("torch_models", "torch_models.spec", False),
        (COMMAND_LINE, "counting.*", False),
    ],
)
def test_rule_means_what_it_says(imported: str, allowed: str, expected: bool) -> None:
    assert is_allowed(imported, allowed) is expected


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b as c\nfrom counting import counts\nfrom counting.counts import Counts\n"
    source += "def f():\n    from x import y\nif TYPE_CHECKING:\n    import z\n"
    assert set(imported_modules(source)) == {"a.b", "counting.counts", "x", "z"}


def test_torch_models_may_never_import_counting() -> None:
    torch_models = [allowed for module, allowed in ALLOWED.items() if module.startswith("torch_models")]
    assert not any(word.startswith("counting") for allowed in torch_models for word in allowed.split())


def test_nothing_slow_is_imported_before_it_is_needed() -> None:
    script = f"""
import importlib, sys
for module in {[module for module in SOURCES if module not in NEEDS_TORCH]}:
    importlib.import_module(module)
    slow = [name for name in {SLOW} if name in sys.modules]
    if slow:
        sys.exit(f"importing {{module}} loads {{', '.join(slow)}}")
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.stderr == ""
    assert process.returncode == 0
