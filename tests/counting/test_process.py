"""A library user's process is left as it was: nothing is patched, hooked, seeded or loaded that stays."""

import json
import subprocess
import sys

SNAPSHOT = """
import gc, json, logging, os, random, sys, threading, warnings
import torch, torch.nn.functional as F
import torch.nn.modules.module as modules
from torch.utils.flop_counter import flop_registry
import counting, torch_models
# These register the FLOP formulas of their ops with torch, which is meant to stay.
import torch_models.modules.kernels.flash_attention, torch_models.modules.kernels.grouped_product
import torch_models.modules.kernels.index_scores

class Unusual(torch.nn.Module):
    def forward(self, x):
        return F.rms_norm(F.scaled_dot_product_attention(x, x, x), x.shape[-1:])

unknown, real = torch.nn.LSTM(4, 4), torch.randn(2, 1, 4)

def state():
    optimizer = sys.modules["torch.optim.optimizer"]
    return {
        "functions": [id(getattr(F, name)) for name in ("scaled_dot_product_attention", "rms_norm", "grouped_mm")],
        "optimizers": id(optimizer._get_fused_kernels_supported_devices),
        "foreach": id(sys.modules["torch.utils._foreach_utils"]._get_foreach_kernels_supported_devices),
        "compiler": "torch._dynamo" in sys.modules,
        "hooks": [len(value) for name, value in sorted(vars(modules).items()) if name.startswith("_global_")
                  and hasattr(value, "__len__")],
        "gc": [gc.isenabled(), gc.get_threshold()],
        "torch": [str(torch.get_default_dtype()), str(torch.get_default_device()), torch.is_grad_enabled(),
                  torch.is_inference_mode_enabled(), torch.get_num_threads(), torch.initial_seed()],
        "numbers": [torch.random.get_rng_state().sum().item(), hash(random.getstate())],
        "registry": len(flop_registry),
        # torch imports sympy with its first operation on meta, which sets a filter for its own warnings.
        "warnings": [str(entry) for entry in warnings.filters if "SymPy" not in str(entry)],
        "logging": [logging.root.manager.disable, logging.root.level],
        "environment": sorted(os.environ.items()),
        "streams": [sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
        "threads": threading.active_count(),
        "path": sys.path,
    }
"""

ACTIONS = {
    "analyze": "counting.analyze('deepseek_v3', counting.Setup(sequence_length=64, recompute='full'))",
    "an error": """
try:
    counting.analyze('llama_7b', counting.Setup(loss_chunk=1))
    raise SystemExit('not refused')
except counting.UserError:
    pass
""",
    "a run": "counting.plan_run(counting.analyze('llama_7b'), counting.RunPlan(tokens=10**12, gpus=('H100',)))",
    "count_flops": "counting.count_flops(Unusual(), torch.ones(1, 2, 4, 8, requires_grad=True))",
    "measure_memory": "counting.measure_memory(Unusual(), torch.empty(1, 2, 4, 8, device='meta', requires_grad=True))",
    "an op that fails": """
try:
    counting.count_flops(unknown, real)
    raise SystemExit('not refused')
except counting.UserError:
    pass
""",
    "building": "torch_models.build('llama_7b', device='meta', dtype=torch.bfloat16)",
}


def test_a_process_is_left_as_it_was() -> None:
    """Whatever is done, one after the other in one process; a change is shown with what made it."""
    code = f"{SNAPSHOT}\nchanged = {{}}\n"
    for name, action in ACTIONS.items():
        code += f"before = state()\n{action}\nafter = state()\n"
        code += f"changed[{name!r}] = {{name: (before[name], after[name]) for name in before"
        code += " if before[name] != after[name]}\n"
    process = subprocess.run(
        [sys.executable, "-c", f"{code}print(json.dumps(changed))"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert process.stderr == ""
    assert json.loads(process.stdout) == {action: {} for action in ACTIONS}


def test_the_snapshot_sees_what_changes() -> None:
    """The test above can fail: a patch, a hook and a seed are seen."""
    changes = {
        "F.rms_norm = lambda *x: x": "functions",
        "modules.register_module_forward_hook(lambda *x: None)": "hooks",
        "torch.manual_seed(3)": "numbers",
        "gc.disable()": "gc",
    }
    code = f"{SNAPSHOT}\n"
    for change, name in changes.items():
        code += f"before = state()\n{change}\nafter = state()\n"
        code += f"print({name!r}, [name for name in before if before[name] != after[name]])\n"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    lines = process.stdout.splitlines()
    assert len(lines) == len(changes)
    for line in lines:
        name, seen = line.split(" ", 1)
        assert f"'{name}'" in seen, line


def test_importing_the_public_api_loads_no_torch() -> None:
    code = "import sys, counting, torch_models; counting.Setup; counting.find_gpu('H100'); torch_models.LayerSpec;"
    code += "print([name for name in ('torch', 'rich', 'numpy', 'fvcore') if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert process.stdout.strip() == "[]"
