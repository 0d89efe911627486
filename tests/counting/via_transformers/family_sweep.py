"""Every family of the installed transformers, by the config that its class makes by default: accepted or refused."""

import json
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

# A kind of reason -> what its message says; the first that matches is the kind.
REASONS = {
    "no causal language model": "has no causal language model of this family",
    "several models": "is made of several models",
    "an encoder beside the decoder": "has an encoder beside its decoder",
    "an encoder": "is an encoder unless|it is an encoder|is trained on permuted orders",
    "layers that carry a state": "carry a state from token to token by a function",
    "experts beyond the model's": "transformers allocates .* experts",
    "parts that a pass over tokens leaves out": "a pass over tokens leaves out",
    "code that reads numbers": "its code reads the numbers in a tensor",
    "code that fails": "transformers cannot build it|transformers' code fails|transformers rejects the config",
    "parts that are not understood": (
        "is made of layers whose kind|lists of .* layers|lie outside its layers|stacked weights of all experts|"
        "is called twice|has no text model|multiplies several channels|takes inputs of other sizes"
    ),
    "a field": r"^\S+ = |: \S+ = ",
}


class Outcome(NamedTuple):
    """What became of one family's default config."""

    model_type: str
    reason: str | None  # the kind of reason of a refusal; None if it was measured
    message: str  # of the refusal
    seconds: float  # of this process, with the import of the family's code
    measured: tuple[int, int] = (0, 0)  # parameters, and FLOPs of a forward pass by the full square of attention
    expected: tuple[int, int] = (0, 0)  # the same by `numel` and torch's own counter, of transformers' own classes


def families() -> list[str]:
    """Every `model_type` that transformers knows."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return sorted(CONFIG_MAPPING)


def examine_all(model_types: Sequence[str]) -> list[Outcome]:
    """The outcomes, worked out by as many processes as there are processors."""
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(examine, model_types, chunksize=8))


SHORTER = {"minimax": 2048}  # tokens, where transformers' code for the default length takes minutes


def examine(model_type: str) -> Outcome:
    """Analyse a family's default config, with its default sequence length if it has one."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from counting.analysis import analyze
    from counting.setup import Setup
    from counting.via_transformers.quiet import quiet
    from torch_models.errors import UserError

    with quiet():
        try:
            config = CONFIG_MAPPING[model_type]()
            fields = json.loads(config.to_json_string(use_diff=False))
        except Exception:  # a class without a usable default
            config, fields = None, {"model_type": model_type}
    began = time.process_time()
    for length in (SHORTER.get(model_type), 128):
        try:
            analysis = analyze(fields, Setup(sequence_length=length), step=False)
        except UserError as error:
            message = str(error)
            if length is None and "sequence_length" in message:
                continue
            return Outcome(model_type, _kind(message), message, time.process_time() - began)
        break
    seconds = time.process_time() - began
    assert config is not None
    length = analysis.setup.sequence_length
    assert length is not None
    # Windows are counted as bands; torch counts the full square. The products of scans have tests of their own.
    measured = analysis.parameters.total, analysis.forward_flops_full_attention - analysis.scan_flops
    return Outcome(model_type, None, "", seconds, measured, _by_transformers(config, length))


# Families with a causal language model that neither a table of transformers nor the name of the configuration tells.
OTHERWISE_NAMED = {"clvp_decoder", "musicgen_decoder", "musicgen_melody_decoder"}


def causes(model_type: str) -> set[str]:
    """The kinds of reasons why a family is no decoder, by transformers' own tables; empty if they tell none."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class, found = CONFIG_MAPPING[model_type], set()
    try:
        is_encoder_decoder = config_class().is_encoder_decoder
    except Exception:  # a class without a usable default
        is_encoder_decoder = getattr(config_class, "is_encoder_decoder", False)
    if is_encoder_decoder:
        found.add("an encoder beside the decoder")
    parts = [getattr(part, "model_type", None) for part in config_class.sub_configs.values()]
    if any(part is None or part in CONFIG_MAPPING for part in parts):  # None: of any family
        found.add("several models")
    has_table = model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not (found or has_table or model_type in OTHERWISE_NAMED or _is_text_part(config_class)):
        found.add("no causal language model")
    return found


def _is_text_part(config_class: Any) -> bool:
    """Whether a family has a class for text that no table names: of its own, or a decoder within a whole model."""
    import importlib

    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    package = importlib.import_module(config_class.__module__.rpartition(".")[0])
    if f"{config_class.__name__.removesuffix('Config')}ForCausalLM" in dir(package):
        return True
    wholes = {**modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
    wholes |= modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    names = [name for name, whole in wholes.items() if str(whole).endswith("ForConditionalGeneration")]
    classes = [CONFIG_MAPPING[name] for name in names if name in CONFIG_MAPPING]
    return any(
        whole.sub_configs.get("text_config") is config_class and not getattr(whole, "is_encoder_decoder", False)
        for whole in classes
        if whole.__module__.startswith(f"{package.__name__}.")
    )


def _kind(message: str) -> str:
    return next((kind for kind, words in REASONS.items() if re.search(words, message)), "unknown")


def _by_transformers(config: Any, length: int) -> tuple[int, int]:
    """The parameters and forward FLOPs of transformers' whole model of a config, with all of its layers.

    A text model without a head has one of vocabulary times width beside it, tied as its config says, or as the class of
    the whole model does.
    """
    import torch
    import transformers

    from counting.via_transformers.quiet import quiet

    if vars(config).get("num_key_value_heads", 0) is None:  # the documented default, which not every class sets
        config.num_key_value_heads = config.num_attention_heads
    has_causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    of_config: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)] if has_causal else _text_class(config)
    with quiet():
        with torch.device("meta"):
            model = of_config._from_config(config, dtype=torch.bfloat16, attn_implementation="eager").eval()
        if model._can_set_experts_implementation():
            model.set_experts_implementation("grouped_mm")
        parameters, flops = sum(weight.numel() for weight in model.parameters()), _flops(model, length)
    if of_config.__name__.endswith(("ForCausalLM", "LMHeadModel")) or model.get_output_embeddings() is not None:
        return parameters, flops
    head = config.vocab_size * config.hidden_size
    return parameters + (0 if _is_tied(config) else head), flops + 2 * length * head


def _flops(model: Any, length: int) -> int:
    """The FLOPs of a forward pass by torch's own counter, without rotary tables: elementwise, though made by products.

    The products of scans are left out, which no code of transformers counts as the published algorithm does.
    The full mask is for code that would read numbers to make one; code that makes its own fails with it.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tests.counting.via_transformers.scans import GROUPED, without_scans

    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device="meta")
    ways: tuple[dict[str, Any], ...] = ({}, {"attention_mask": mask})
    for inputs in ways:
        counter = FlopCounterMode(display=False, custom_mapping=GROUPED)
        try:
            with torch.no_grad(), without_scans(model), counter:
                model(input_ids=ids, use_cache=False, **inputs)
        except RuntimeError as error:
            if inputs or "meta tensors" not in str(error):
                raise
            continue
        counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
        rotary = (count for name, count in counts.items() if "rotary" in name.rpartition(".")[2])
        total = int(counts["Global"] - sum(rotary))
        if model.config.model_type != "llama4_text":
            return total
        # Its experts each multiply all tokens, of which the router has set those of others to 0.
        experts = sum(int(count) for name, count in counts.items() if name.endswith(".experts"))
        top_k, number = model.config.num_experts_per_tok, model.config.num_local_experts
        return total - experts + experts * top_k // number
    raise AssertionError("neither way runs")


def _is_tied(config: Any) -> bool:
    """Whether a text model shares its embedding with the head: by its config, else by that of a whole model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if hasattr(config, "tie_word_embeddings"):
        return bool(config.tie_word_embeddings)
    package = type(config).__module__.rpartition(".")[0]
    wholes = {
        getattr(whole, "tie_word_embeddings")  # noqa: B009 - declared by some classes only
        for whole in map(CONFIG_MAPPING.__getitem__, CONFIG_MAPPING)
        if whole.__module__.startswith(f"{package}.") and type(config) is whole.sub_configs.get("text_config")
    }
    (tied,) = wholes
    return bool(tied)


def _text_class(config: Any) -> Any:
    """The class of the text model of a config without one in transformers' table of causal language models."""
    import importlib
    import inspect

    import transformers

    if type(config) in transformers.MODEL_MAPPING:
        return transformers.MODEL_MAPPING[type(config)]
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    classes = [
        value
        for name, value in inspect.getmembers(module, inspect.isclass)
        if getattr(value, "config_class", None) is type(config) and name.endswith(("ForCausalLM", "TextModel"))
    ]
    (found,) = [each for each in classes if each.__name__.endswith("ForCausalLM")] or classes
    return found
