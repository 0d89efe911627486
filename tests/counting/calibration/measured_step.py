"""A step of a shrunken Llama on this machine's CPU, measured, and predicted from rates that were measured just before.

    make bench        or        python tests/counting/calibration/measured_step.py

The step is that of the real modules: forward, backward, and AdamW in one fused kernel, all in bf16, since that is what
the rates of products and attention are measured in, with or without instructions for it. The model is wide for its
depth, so that products take most of the time, as in training: then it matters little that torch runs some ops that are
one kernel on a GPU, such as norms, as several on a CPU. Nothing is fitted to a step. It runs in one thread, and all is
timed by the processor time of this process, so that what else runs on the machine counts little. Exit status 1 if the
prediction is off by more than `LIMIT`, or if the step is faster than its bound.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - the root must be on the path for what follows

from counting import Setup, analyze  # noqa: E402
from counting.calibration.cluster_file import as_text, with_machine  # noqa: E402
from counting.calibration.machine import Ranks, measure_machine  # noqa: E402
from counting.cost.cluster import Cluster, read_cluster  # noqa: E402
from torch_models import build_training_model  # noqa: E402

LIMIT = 0.2
SECONDS_OF_RATES = 40.0
ROUNDS = 7
SETUP = Setup(sequence_length=1024, precision="bf16", optimizer="adamw")
WIDE_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 1024,
}


def measured_cluster(seconds: float) -> Cluster:
    """This machine, as `calibrate` writes and reads it."""
    document = with_machine({}, measure_machine(Ranks(), seconds, lambda text: None), None)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cluster.json"
        path.write_text(as_text(document), encoding="utf-8")
        return read_cluster(path)


def measured_seconds(rounds: int) -> list[float]:
    """Seconds of each of `rounds` steps, after two that are not counted."""
    model = build_training_model(WIDE_LLAMA, dtype=torch.bfloat16, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens, labels = torch.randint(WIDE_LLAMA["vocab_size"], (2, SETUP.micro_batch_size, SETUP.sequence_length or 0))
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        model(tokens, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def main() -> int:
    """Measures, prints both, and says by its status whether they agree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS_OF_RATES, help="of measuring rates (default: 40)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"timed steps (default: {ROUNDS})")
    options = parser.parse_args()
    torch.set_num_threads(1)
    time.perf_counter = time.process_time  # what `calibrate` times with, too
    cluster = measured_cluster(options.seconds)
    rounds = measured_seconds(options.rounds)
    (predicted,) = analyze(WIDE_LLAMA, SETUP, cluster=cluster).step_time or ()
    measured = statistics.median(rounds)
    error = predicted.seconds / measured - 1
    parts = predicted.breakdown
    print(
        f"a step of a shrunken Llama in bf16 on {cluster.gpu.description}:\n"
        f"  measured   {measured:.3f} s, the median of {len(rounds)}; {min(rounds):.3f} to {max(rounds):.3f}\n"
        f"  predicted  {predicted.seconds:.3f} s ({error:+.1%}): products {parts.products:.3f}, attention "
        f"{parts.attention:.3f}, by bytes {parts.memory_bound:.3f}, optimizer {parts.optimizer:.3f}\n"
        f"  bound      {predicted.bound_seconds:.3f} s"
    )
    holds = abs(error) <= LIMIT and predicted.bound_seconds <= min(rounds)
    print(f"  within {LIMIT:.0%} of measured, and not faster than the bound  {'ok' if holds else 'BROKEN'}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
