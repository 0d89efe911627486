"""What a user gets from a wheel: all modules, all data, the console command; and that these work from any folder."""

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

from torch_models.fields.bundled import bundled_data

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
DATA = "torch_models.configs"  # the packaged name of the folder configs/
CODE = sorted(set(SETUPTOOLS["packages"]) - {DATA})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network, by way of a source distribution, from a copy of exactly what goes into it."""
    setuptools = pytest.importorskip("setuptools", minversion="77")
    assert setuptools is not None
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("configs", "counting", "torch_models"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["pyproject.toml", "README.md", "LICENSE", *(f"{module}.py" for module in SETUPTOOLS["py-modules"])]:
        shutil.copy(ROOT / name, source)
    script = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    run([sys.executable, "-c", script, str(built)], cwd=source)
    (sdist,) = built.glob("*.tar.gz")
    flags = ["--no-deps", "--no-build-isolation", "--no-index"]
    run([sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", str(built), str(sdist)], cwd=built)
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(command: list[str], *, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The process, which must succeed."""
    process = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process


def test_packages_are_all_that_stand_in_the_tree() -> None:
    folders = [
        path.parent.relative_to(ROOT)
        for package in ("counting", "torch_models")
        for path in (ROOT / package).rglob("__init__.py")
    ]
    assert sorted(".".join(folder.parts) for folder in folders) == CODE


def test_the_data_folder_holds_json_and_no_code() -> None:
    assert SETUPTOOLS["package-dir"] == {DATA: "configs"}
    assert SETUPTOOLS["package-data"][DATA] == ["*.json"]
    names = {path.name for path in (ROOT / "configs").iterdir()}
    assert {Path(name).suffix for name in names} == {".json"}
    assert {"llama_7b_config.json", "deepseek_v3_config.json", "my_model_config.json"} <= names
    assert {entry.name for entry in bundled_data().iterdir()} == names


@pytest.mark.parametrize("path", sorted((ROOT / "configs").iterdir()), ids=lambda path: path.name)
def test_bundled_file_is_valid_json(path: Path) -> None:
    assert json.loads((bundled_data() / path.name).read_text(encoding="utf-8"))


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
        f"{package.replace('.', '/')}/{path.name}"
        for package in SETUPTOOLS["packages"]
        for pattern in ["*.py", *SETUPTOOLS["package-data"].get(package, [])]
        for path in (ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))).glob(pattern)
    }
    files |= {f"{module}.py" for module in SETUPTOOLS["py-modules"]}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        commands = archive.read(entry_points).decode()
        fields = Parser().parsestr(archive.read(metadata).decode())
    assert held == files
    assert {name.partition("/")[0] for name in held} == {"counting", "model_training_cost_analysis.py", "torch_models"}
    assert "model-training-cost-analysis = model_training_cost_analysis:command" in commands
    assert fields["Requires-Python"] == ">=3.11"
    assert fields["License-Expression"] == "MIT"


# What the installed script does, and a library user's two lines. The first line printed is the file that ran.
COMMAND = "import sys, model_training_cost_analysis as top; print(top.__file__, flush=True); sys.exit(top.command())"
LIBRARY = "import counting; print(counting.__file__); print(counting.analyze('llama_7b').parameters.total)"


@pytest.mark.parametrize(
    ("script", "flags", "expected"),
    [
        (COMMAND, ["--training_budget", "5000000"], "best_gpu: A100"),
        (COMMAND, ["--model_config", "llama_7b_config.json"], "Number of parameters: 6738415616"),
        (LIBRARY, [], "6738415616"),
    ],
    ids=["gpu catalogue", "config", "library"],
)
def test_wheel_works_in_a_folder_with_a_package_named_configs(
    installed: Path, tmp_path: Path, script: str, flags: list[str], expected: str
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise ImportError('the configs of another project')\n")
    # With -c, the current folder comes first on the path, before what is installed.
    process = run([sys.executable, "-c", script, *flags], cwd=tmp_path, PYTHONPATH=str(installed))
    assert process.stderr == ""
    first_line, _, rest = process.stdout.partition("\n")
    assert Path(first_line).is_relative_to(installed), "the wheel must run, not the source tree"
    assert expected in rest


def test_wheel_hides_no_package_named_configs(installed: Path, tmp_path: Path) -> None:
    """What stands on the path after this project is still found."""
    (tmp_path / "later" / "configs").mkdir(parents=True)
    (tmp_path / "later" / "configs" / "__init__.py").write_text("OWNER = 'another project'\n")
    path = os.pathsep.join([str(installed), str(tmp_path / "later")])
    process = run([sys.executable, "-P", "-c", "import configs; print(configs.OWNER)"], cwd=tmp_path, PYTHONPATH=path)
    assert process.stdout == "another project\n"
