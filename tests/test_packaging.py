"""What a user gets from a wheel: all modules, all data, the console command; and that these work from any folder."""

import importlib.resources
import itertools
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
CONFIGS = sorted(
    path.name for pattern in SETUPTOOLS["package-data"]["configs"] for path in ROOT.glob(f"configs/{pattern}")
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network from a copy of exactly what goes into it."""
    setuptools = pytest.importorskip("setuptools", minversion="77")
    assert setuptools is not None
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in {package.partition(".")[0] for package in SETUPTOOLS["packages"]}:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["pyproject.toml", "README.md", "LICENSE", *(f"{module}.py" for module in SETUPTOOLS["py-modules"])]:
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    process = subprocess.run([*command, built, source], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    (path,) = built.glob("*.whl")
    return path


def test_packages_are_all_that_stand_in_the_tree() -> None:
    folders = [path.parent.relative_to(ROOT) for depth in ("*", "*/*") for path in ROOT.glob(f"{depth}/__init__.py")]
    with_code = {
        ".".join(folder.parts) for folder in folders if folder.parts[0] in ("configs", "counting", "torch_models")
    }
    assert set(SETUPTOOLS["packages"]) == with_code


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_a_resource_and_valid_json(name: str) -> None:
    resource = importlib.resources.files("configs") / name
    assert json.loads(resource.read_text(encoding="utf-8"))


def test_promised_configs_are_there() -> None:
    promised = {"llama_7b_config.json", "deepseek_v3_config.json", "my_model_config.json"}
    assert promised <= set(CONFIGS)


def test_every_dependency_is_pinned_to_one_version() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "every line is name==version"
    assert all("+" not in version for _, version in pins), "a local version is on no public index"
    project = PYPROJECT["project"]
    requirements = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {requirement.split(">=")[0].split("[")[0] for requirement in requirements}
    assert names - {project["name"]} <= {name for name, _ in pins}


def test_wheel_holds_code_data_and_command(wheel: Path) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in SETUPTOOLS["packages"]
        for pattern in ["*.py", *SETUPTOOLS["package-data"].get(package, [])]
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files |= {f"{module}.py" for module in SETUPTOOLS["py-modules"]}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        commands = archive.read(entry_points).decode()
        fields = Parser().parsestr(archive.read(metadata).decode())
    assert held == files
    assert "model-training-cost-analysis = model_training_cost_analysis:command" in commands
    assert fields["Requires-Python"] == ">=3.11"
    assert fields["License-Expression"] == "MIT"


@pytest.mark.parametrize(
    "flags",
    [["--training_budget", "5000000"], ["--model_config", "llama_7b_config.json"]],
    ids=["gpu catalogue", "config"],
)
def test_wheel_finds_its_data_from_another_folder(wheel: Path, tmp_path: Path, flags: list[str]) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    script = "import sys, model_training_cost_analysis as command; print(command.__file__); sys.exit(command.main())"
    process = subprocess.run(
        [sys.executable, "-P", "-c", script, *flags],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stderr == ""
    assert process.returncode == 0
    first_line = process.stdout.partition("\n")[0]
    assert Path(first_line).parent == installed, "the wheel must run, not the source tree"
