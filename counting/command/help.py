"""The parts of --help around the list of flags: an example for each job, and the names that flags accept."""

import shutil
import textwrap

from counting.cost.hardware import load_gpus
from counting.cost.scaling_laws import LAWS
from counting.cost.scaling_laws.allocation import allocation_laws
from counting.recipes import OPTIMIZERS, PRECISIONS
from torch_models.fields.bundled import bundled_data

WIDEST = 120
_INDENT = "    "
PROGRAM = "python3 model_training_cost_analysis.py"

# Job -> the lines of one command.
EXAMPLES = {
    "Does it fit?": (PROGRAM, "--model_config llama_3_8b --layout fsdp=64 --gpus H100,B200"),
    "How long, how much? On a slide, too": (
        PROGRAM,
        "--compare --model_config deepseek_v3 llama_3_1_405b --tokens 15T",
        "--gpus H100 --figure slide.png",
    ),
    "What shall I train for my money?": (PROGRAM, "--training_budget 5M --gpus A100,H100 --num_gpus 256"),
    "Is this claim true?": (
        PROGRAM,
        "--model_config deepseek_v3 --precision fp8 --tokens 14.8T",
        "--gpus H800 --price 2 --gpu_hours 2.664M",
    ),
    "What do my own modules cost?": (
        'python3 -c "import torch, counting; layer = torch.nn.Linear(4096, 11008);',
        'print(counting.count_flops(layer, torch.empty(2048, 4096)))"',
    ),
}


def job_examples() -> str:
    """One command for each job, ready to copy."""
    shown = []
    for job, lines in EXAMPLES.items():
        shown += [f"  {job}", "    " + " \\\n      ".join(lines)]
    return "\n".join(shown)


def names_of_flags() -> str:
    """The names that flags accept, in lines as wide as the terminal but at most `WIDEST`."""
    width = min(shutil.get_terminal_size().columns, WIDEST) - len(_INDENT) - 1
    models = sorted(
        entry.name.removesuffix("_config.json")
        for entry in bundled_data().iterdir()
        if entry.name.endswith("_config.json")
    )
    known = {
        "models in configs/ (--model_config)": models,
        "GPUs (--gpus; with their sources in configs/gpus.json)": [gpu.name for gpu in load_gpus()],
        "scaling laws (--scaling_law; the last say only N or D)": [
            *(law.name for law in LAWS),
            *(law.name for law in allocation_laws()),
        ],
        "recipes (--precision)": [entry.name for entry in PRECISIONS],
        "optimizers (--optimizer)": [entry.name for entry in OPTIMIZERS],
    }
    shown = ["names that flags take:"]
    for title, entries in known.items():
        lines = textwrap.wrap(", ".join(entries), width, break_long_words=False, break_on_hyphens=False)
        shown += [f"  {title}", *(_INDENT + line for line in lines)]
    return "\n".join(shown)
