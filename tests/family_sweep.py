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
    "layers that carry a state": "carry a state from token to token",
    "parts that a pass over tokens leaves out": "a pass over tokens leaves out",
    "code that reads numbers": "its code reads the numbers in a tensor",
    "code that fails": "transformers cannot build it|transformers' code fails|transformers rejects the config",
    "parts that are not understood": (
        "is made of layers whose kind|lists of .* layers|lie outside its layers|stacked weights of all experts|"
        "is called twice|has no text model"
    ),
    "a field": r"^\S+ = |: \S+ = ",
}


class Outcome(NamedTuple):
    """What became of one family's default config."""

    model_type: str
    reason: str | None  # the kind of reason of a refusal; None if it was measured
    message: str  # of the refusal
    seconds: float  # of this process, with the import of the family's code
    parameters: int  # measured
    expected: int  # by `numel` of transformers' own classes


def families() -> list[str]:
    """Every `model_type` that transformers knows."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return sorted(CONFIG_MAPPING)


def examine_all(model_types: Sequence[str]) -> list[Outcome]:
    """The outcomes, worked out by as many processes as there are processors."""
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(examine, model_types, chunksize=8))


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
    for length in (None, 128):
        try:
            analysis = analyze(fields, Setup(sequence_length=length), step=False)
        except UserError as error:
            message = str(error)
            if length is None and "sequence_length" in message:
                continue
            return Outcome(model_type, _kind(message), message, time.process_time() - began, 0, 0)
        break
    seconds = time.process_time() - began
    assert config is not None
    head = analysis.parameters.by_component["lm_head"]
    return Outcome(model_type, None, "", seconds, analysis.parameters.total, _numel(config, head))


def _kind(message: str) -> str:
    return next((kind for kind, words in REASONS.items() if re.search(words, message)), "unknown")


def _numel(config: Any, head: int) -> int:
    """The parameters of transformers' model of a config; of a text model without a head, with one of `head` weights."""
    import torch
    import transformers

    from counting.via_transformers.quiet import quiet

    if vars(config).get("num_key_value_heads", 0) is None:  # the documented default, which not every class sets
        config.num_key_value_heads = config.num_attention_heads
    with quiet(), torch.device("meta"):
        if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            model = transformers.AutoModelForCausalLM.from_config(config)
            return sum(weight.numel() for weight in model.parameters())
        model = _text_class(config)(config)
    of_text = sum(weight.numel() for weight in model.parameters())
    words = model.get_input_embeddings().weight.numel()
    assert head in (0, config.vocab_size * config.hidden_size, words)
    return of_text + (0 if model.get_output_embeddings() else head)


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
