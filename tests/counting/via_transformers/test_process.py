"""A library user's process is left as it was; and threads that measure at once get what each gets alone."""

import logging
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch.nn.modules import module as hooks_of_all_modules

from counting.setup import Setup, resolve
from counting.via_transformers import measure as measuring_file
from counting.via_transformers.attention import ONE_KERNEL, attention_in_one_kernel, attention_known_as
from counting.via_transformers.measure import Measured, measure_via_transformers
from counting.via_transformers.reading.config import ForeignModel, read_foreign
from tests.foreign_families import FAMILIES
from torch_models.errors import UserError
from torch_models.fields.config import ForeignConfig

SETUP = Setup(sequence_length=32)


def read(model_type: str) -> ForeignModel:
    fields = {"model_type": model_type, **FAMILIES[model_type][0]}
    return read_foreign(ForeignConfig(name="small", source="small", model_type=model_type, fields=fields))


def measured(model_type: str) -> Measured:
    return measured_step(read(model_type))


def measured_step(model: ForeignModel) -> Measured:
    """Forward passes and a training step."""
    found = measure_via_transformers(model, resolve(SETUP, model), step=True)
    assert found.step is not None, found.no_step
    return found


def state_of_process() -> dict[str, Any]:
    """What a measurement could change of the process, by value."""
    logger = logging.getLogger("transformers")
    return {
        "attention": dict(transformers.AttentionInterface._global_mapping),
        "logging": (logging.root.manager.disable, logging.root.level, tuple(logging.root.handlers)),
        "transformers' logging": (logger.disabled, logger.level, tuple(logger.handlers), logger.propagate),
        "streams of transformers' logging": [getattr(handler, "stream", None) for handler in logger.handlers],
        "environment": dict(os.environ),
        "offline": huggingface_hub.constants.HF_HUB_OFFLINE,
        "warnings": list(warnings.filters),
        "streams": (sys.stdout, sys.stderr),
        "functions": (F.scaled_dot_product_attention, F.rms_norm, F.grouped_mm),
        "hooks of all modules": tuple(
            len(getattr(hooks_of_all_modules, f"_global_{name}_hooks")) for name in ("forward", "forward_pre")
        ),
        "torch": (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()),
        "compiler": sys.modules.get("torch._dynamo"),
    }


# --- The process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["gpt_bigcode", "falcon", "glm4_moe_lite"])
def test_a_measurement_leaves_the_process_as_it_was(model_type: str) -> None:
    measured(model_type)  # whatever is imported for it
    before = state_of_process()
    model = read(model_type)
    config = model.config.to_dict()
    measured_step(model)
    assert state_of_process() == before
    assert model.config.to_dict() == config


def test_so_does_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        changed.append(state_of_process() != before)
        raise UserError("no")

    measured("gpt_bigcode")
    model, before = read("gpt_bigcode"), state_of_process()
    changed: list[bool] = []
    monkeypatch.setattr(measuring_file, "count", fails)
    with pytest.raises(UserError, match="small: model_type gpt_bigcode cannot be measured: no"):
        measured_step(model)
    assert changed == [True]
    assert state_of_process() == before


def test_a_name_in_transformers_table_of_attention_is_put_back() -> None:
    table = transformers.AttentionInterface._global_mapping
    assert ONE_KERNEL not in table
    with attention_known_as(ONE_KERNEL, attention_in_one_kernel):
        with attention_known_as(ONE_KERNEL, print):  # type: ignore[arg-type]
            assert table[ONE_KERNEL] is print
        assert table[ONE_KERNEL] is attention_in_one_kernel
    assert ONE_KERNEL not in table


USER = """
import logging, sys
from counting.setup import Setup, resolve
from counting.via_transformers.reading.config import read_foreign
from counting.via_transformers.measure import measure_via_transformers
from tests.foreign_families import GPT2
from torch_models.fields.config import ForeignConfig

fields = {"model_type": "gpt_bigcode", **GPT2}
model = read_foreign(ForeignConfig(name="small", source="small", model_type="gpt_bigcode", fields=fields))
setup = resolve(Setup(sequence_length=32), model)
assert measure_via_transformers(model, setup, step=True).step
import huggingface_hub, transformers
print(huggingface_hub.is_offline_mode(), "one_fused_kernel" in transformers.AttentionInterface._global_mapping)
transformers.logging.get_logger("transformers.models").warning("heard")
"""


def test_transformers_first_imported_by_a_measurement_works_for_the_user_afterwards() -> None:
    """What it keeps from the time of its import: whether servers may be asked, and where its messages go."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "CI")}
    environment.pop("TRANSFORMERS_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", USER], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False False\n"
    assert done.stderr == "[transformers] heard\n"


# --- Threads ---------------------------------------------------------------------------------------------------


def test_threads_that_measure_at_once_get_what_each_gets_alone() -> None:
    families = ["gpt_bigcode", "olmoe", "cohere2", "bloom"]
    alone = [measured(model_type) for model_type in families]
    before = state_of_process()
    start = threading.Barrier(len(families))

    def at_once(model_type: str) -> Measured:
        start.wait()
        return measured(model_type)

    with ThreadPoolExecutor(len(families)) as threads:
        together = list(threads.map(at_once, families))
    assert together == alone
    assert state_of_process() == before


def test_a_user_without_gradients_gets_the_same() -> None:
    expected = measured("gpt_bigcode")
    with torch.no_grad():
        assert measured("gpt_bigcode") == expected
    with torch.inference_mode():
        assert measured("gpt_bigcode") == expected
