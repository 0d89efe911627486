"""Time and peak memory of the command, each as a ratio to `python3 -c "import torch"` in the same run; then a step of
training, measured on this machine's CPU and predicted (tests/counting/calibration/measured_step.py).

    make bench        or        python tests/benchmark.py --rounds 7

Each round runs every command once, so that whatever else the machine does falls on all of them alike; a ratio is taken
within a round, and the median over the rounds is held against its limit. Exit status 1 if a limit is broken. On a busy
machine equal commands differ by several percent: leave it idle, or raise the number of rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, str(ROOT / "model_training_cost_analysis.py")]
MEASURED_STEP = [sys.executable, str(ROOT / "tests" / "counting" / "calibration" / "measured_step.py")]

BASELINE = "import torch"
BUDGET = "--training_budget 5000000"
CONFIGS = ["llama_7b_config.json", "llama_3_8b_config.json", "deepseek_v3_config.json"]
# One size of each family with a mechanism of its own: more kinds of layers, ops and checks than those above.
FURTHER_CONFIGS = [
    "gemma_3_27b_config.json --seq_len 32768",
    "gemma_4_26b_a4b_config.json --seq_len 4096",
    "gpt2_config.json",
    "gpt_oss_20b_config.json",
    "glm_5_config.json --seq_len 4096",
    "llama_4_scout_config.json --seq_len 8192",
    "minimax_m2_config.json --seq_len 4096",
    "olmo_3_7b_config.json --seq_len 8192",
    "qwen1_5_moe_a2_7b_config.json",
    "smollm3_3b_config.json --seq_len 4096",
]
DEEPER_CONFIG = "deepseek_v3_config.json"  # of 61 layers, and analysed with ten times as many

# Steps that are spread over ranks, and the same over more ranks and with more layers.
LLAMA_RESERVED = "llama_3_8b_config.json --seq_len 8192 --layout fsdp=64"
LLAMA_ON_64 = f"{LLAMA_RESERVED} --reserved off"
LLAMA_ON_65536 = "llama_3_8b_config.json --seq_len 8192 --layout dp=64,fsdp=1024 --reserved off"
SPREAD = "--seq_len 4096 --recompute full --layout fsdp=2048,ep=64 --reserved off"
DEEPSEEK_ON_2048 = f"{DEEPER_CONFIG} {SPREAD}"
DEEPSEEK_PIPELINE = (
    f"{DEEPER_CONFIG} --seq_len 4096 --recompute full --layout pp=16,fsdp=128,ep=64,schedule=dualpipev "
    "--global_batch_tokens 62914560 --reserved off"
)

BUDGET_LIMIT = 0.15
CONFIG_LIMIT = 1.6
DEEPER_LIMIT = 1.03
LLAMA_SPREAD_LIMIT = 3.5
LLAMA_RESERVED_LIMIT = 10.0
DEEPSEEK_SPREAD_LIMIT = 8.0
DEEPSEEK_PIPELINE_LIMIT = 10.0
MORE_RANKS_LIMIT = 1.05
MEMORY_LIMIT = 1.3
FURTHER_MEMORY_LIMIT = 1.35


class Cost(NamedTuple):
    """What one run of a command took."""

    seconds: float
    peak_memory: int  # in the unit of getrusage, which is the same for all


class Check(NamedTuple):
    """A ratio of two commands' costs that must not exceed a limit."""

    quantity: str
    command: str
    reference: str
    cost: Callable[[Cost], float]
    limit: float


def run(argv: Sequence[str]) -> Cost:
    """Runs a command to its end; its output is dropped, its failure ends the benchmark."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=errors, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            sys.exit(f"{' '.join(argv)}\nended with status {process.returncode}:\n{errors.read().decode()}")
    return Cost(seconds, usage.ru_maxrss)


def modules_imported(argv: Sequence[str]) -> set[str]:
    """The names of all modules that a Python command imports."""
    process = subprocess.run(
        [argv[0], "-X", "importtime", *argv[1:]], capture_output=True, text=True, check=True, cwd=ROOT
    )
    lines = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    assert lines, "no import was reported"
    return {line.rsplit("|", 1)[1].strip() for line in lines}


def write_deeper_config(folder: Path) -> Path:
    """The same model with ten times the layers."""
    config = json.loads((ROOT / "configs" / DEEPER_CONFIG).read_text(encoding="utf-8"))
    config["num_hidden_layers"] *= 10
    path = folder / f"{config['num_hidden_layers']}_layers.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def measure(commands: dict[str, list[str]], rounds: int) -> dict[str, list[Cost]]:
    """Every command once per round, forwards and backwards in turn, after a round that only warms the caches."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for round_number in range(rounds + 1):
        names = list(commands) if round_number % 2 else list(reversed(commands))
        for name in names:
            cost = run(commands[name])
            if round_number > 0:
                costs[name].append(cost)
        if sys.stderr.isatty():
            print(f"\rround {round_number} of {rounds}", end="\n" if round_number == rounds else "", file=sys.stderr)
    return costs


def all_checks(deeper: str) -> list[Check]:
    """What is promised about time and memory."""

    def seconds(cost: Cost) -> float:
        return cost.seconds

    def peak_memory(cost: Cost) -> float:
        return cost.peak_memory

    analyses, further = ([f"--model_config {config}" for config in configs] for configs in (CONFIGS, FURTHER_CONFIGS))
    llama, wider, deepseek = (f"--model_config {each}" for each in (LLAMA_ON_64, LLAMA_ON_65536, DEEPSEEK_ON_2048))
    return [
        Check("time", BUDGET, BASELINE, seconds, BUDGET_LIMIT),
        *(Check("time", analysis, BASELINE, seconds, CONFIG_LIMIT) for analysis in [*analyses, *further]),
        Check("time", deeper, f"--model_config {DEEPER_CONFIG}", seconds, DEEPER_LIMIT),
        Check("time", llama, BASELINE, seconds, LLAMA_SPREAD_LIMIT),
        Check("time", f"--model_config {LLAMA_RESERVED}", BASELINE, seconds, LLAMA_RESERVED_LIMIT),
        Check("time", wider, llama, seconds, MORE_RANKS_LIMIT),
        Check("time", deepseek, BASELINE, seconds, DEEPSEEK_SPREAD_LIMIT),
        Check("time", f"{deeper} {SPREAD}", deepseek, seconds, MORE_RANKS_LIMIT),
        Check("time", f"--model_config {DEEPSEEK_PIPELINE}", BASELINE, seconds, DEEPSEEK_PIPELINE_LIMIT),
        *(Check("memory", name, BASELINE, peak_memory, MEMORY_LIMIT) for name in [BUDGET, *analyses, deeper]),
        *(Check("memory", name, BASELINE, peak_memory, FURTHER_MEMORY_LIMIT) for name in further),
    ]


def main() -> int:
    """Measures, prints the table, and says by its status whether every limit holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each command (default: 7)")
    rounds: int = parser.parse_args().rounds
    if rounds < 1:
        parser.error(f"--rounds {rounds}: must be at least 1")

    with tempfile.TemporaryDirectory() as folder:
        deeper_config = write_deeper_config(Path(folder))
        deeper = f"--model_config {deeper_config.name}"
        commands = {
            BASELINE: [sys.executable, "-c", "import torch"],
            BUDGET: [*COMMAND, *BUDGET.split()],
            **{
                f"--model_config {config}": [*COMMAND, "--model_config", *config.split()]
                for config in [*CONFIGS, *FURTHER_CONFIGS]
            },
            # Beside the analysis that it is compared with.
            deeper: [*COMMAND, "--model_config", str(deeper_config)],
            **{
                f"--model_config {each}": [*COMMAND, "--model_config", *each.split()]
                for each in (LLAMA_ON_64, LLAMA_RESERVED, LLAMA_ON_65536, DEEPSEEK_ON_2048, DEEPSEEK_PIPELINE)
            },
            f"{deeper} {SPREAD}": [*COMMAND, "--model_config", str(deeper_config), *SPREAD.split()],
        }
        imports_torch = "torch" in modules_imported(commands[BUDGET])
        costs = measure(commands, rounds)

    baseline = statistics.median(cost.seconds for cost in costs[BASELINE])
    print(f'python3 -c "import torch": {baseline:.2f} s, the median of {rounds} runs\n')
    print(f"{'':8}{'command':78}{'compared with':78}{'ratio':>7}{'limit':>7}")
    broken = int(imports_torch)
    for check in all_checks(deeper):
        pairs = zip(costs[check.command], costs[check.reference], strict=True)
        ratio = statistics.median(check.cost(cost) / check.cost(reference) for cost, reference in pairs)
        verdict = "ok" if ratio <= check.limit else "BROKEN"
        broken += verdict == "BROKEN"
        print(f"{check.quantity:8}{check.command:78}{check.reference:78}{ratio:7.3f}{check.limit:7.2f}  {verdict}")
    verdict = "BROKEN: it imports torch" if imports_torch else "ok"
    print(f"{'imports':8}{BUDGET:78}{'no torch':92}  {verdict}")
    print(flush=True)
    broken += subprocess.call(MEASURED_STEP, cwd=ROOT)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
