"""A new family is one file: added to a copy of the sources, it is read, built, measured and proven."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.shrunken import QWEN3_MOE

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("configs", "counting", "torch_models")
COMMAND = "model_training_cost_analysis.py"


def test_a_new_family_is_one_file(tmp_path: Path) -> None:
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / COMMAND, tmp_path)
    families = tmp_path / "torch_models" / "families"
    shutil.copy(families / "qwen3_moe.py", families / "new_moe.py")
    fields = {name: value for name, value in QWEN3_MOE.items() if name != "model_type"}
    (tmp_path / "new_config.json").write_text(json.dumps(fields | {"architectures": ["NewMoeForCausalLM"]}))

    process = subprocess.run(
        [sys.executable, COMMAND, "--model_config", "new_config.json", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stderr == ""
    assert '"model_type":"new_moe"' in process.stdout
    assert '"proof":"measured = formula"' in process.stdout
