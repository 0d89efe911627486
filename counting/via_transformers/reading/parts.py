"""Which parts the model that transformers built has, for the fields of a config that its class does not declare.

A part that is in some layers only, or that cannot be told from the modules and their names, is left out: no field about
it is then accepted.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from counting.via_transformers.discover import Discovered
from counting.via_transformers.reading.fields import sizes_of, value_of
from counting.via_transformers.reading.positions import is_position_table, position_field
from counting.via_transformers.structure import experts_in, is_norm
from torch_models.fields.switches import Part, unanimous

_ATTENTION = re.compile(r"attn|attention")
_QKV = re.compile(
    r"(q|k|v|kv|qkv|query|key|value|query_key_value|c_attn|in)(_proj)?|(att|qkv)_proj|W(q|k|v|qkv)|project_[qkv]"
    r"|(q_a|kv_a)_proj(_with_mqa)?"
)
_OUTPUT = re.compile(r"(o|out|c)_proj|dense|attention_out|Wo")
_MLP = re.compile(
    r"(gate|up|down|gate_up)_proj|fc_?(1|2|in|out)|c_(fc|proj)|dense_(h_to_4h|4h_to_h)|w[123]|(input|output)_linear"
)
_GATED = re.compile(r"gate_proj|gate_up_proj|w3|wi_1|input_linear|gate_up_projs?|up_gate_proj")
_UNGATED = re.compile(r"up_proj|fc_?1|fc_in|c_fc|dense_h_to_4h|lin1|wi|layer_1")
_QUERY_NORM = re.compile(r"(q|k|qk|query|key)_(layer_?)?norm")
_GATE = re.compile(r"(g|gate|attn_gate|output_gate|attention_gate)(_proj)?")
_LATENT = re.compile(r"kv_a_proj(_with_mqa)?|kv_b_proj")
_FINAL_NORM = re.compile(r"norm|norm_?f|ln_f|final_(layer_?)?norm|layer_?norm")
_NORM_BEFORE = re.compile(r"input_(layer)?norm|pre_.*norm")
_NORM_AFTER = re.compile(r"post_(feedforward|mlp|ffn|moe)_(layer)?norm")
_STATE_NORM = re.compile(r"(dt|b|c)_(layer_?)?norm")
_ADAPTER = re.compile(r"gate_up_proj_adapter(_list)?")
_SHARED = re.compile(r"shared_?(expert|mlp)")


class _Named(NamedTuple):
    """A module of a layer; `path` is its name within the layer."""

    path: str
    module: nn.Module

    @property
    def own_name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def in_attention(self) -> bool:
        return _ATTENTION.search(self.path) is not None


def parts_of_model(found: Discovered, config: Any) -> dict[Part, bool]:
    """For each part that fields of configs speak of, whether the model has it."""
    layers = [[_Named(*named) for named in group.layer.named_modules()] for group in found.groups]
    modules = [named for layer in layers for named in layer]
    outside = [module for name, module in found.model.named_modules() if not name.startswith(found.layers_name)]
    parts = unanimous(
        {
            **_biases(modules),
            Part.RMS_NORM: [kind for named in modules for kind in _is_root_mean_square(named.module)],
            Part.NORM_WEIGHTS: [
                any(True for _ in named.module.parameters()) for named in modules if _is_called_norm(named.module)
            ],
            Part.GATED_MLP: [gated for layer in layers for gated in _is_gated(layer)],
            Part.NORM_BEFORE: [before for layer in layers for before in _norms_before(layer)],
            Part.NORM_AFTER: [after for layer in layers for after in _norms_after(layer)],
            Part.PARALLEL: [parallel for layer in layers for parallel in _is_parallel(layer, config)],
            Part.SHARED_EXPERTS: [shared for layer in layers for shared in _shares_experts(layer)] or [False],
        }
    )
    parts |= unanimous({Part.FEED_FORWARD: [_has_feed_forward(layer) for layer in layers]})
    parts[Part.STATE_NORMS] = any(_STATE_NORM.fullmatch(named.own_name) for named in modules)
    parts[Part.ADAPTERS] = any(_ADAPTER.fullmatch(named.own_name) for named in modules)
    of_experts = [bool(experts_in(group.layer)) or "experts" in dict(layer) for group, layer in _pairs(found, layers)]
    parts[Part.EXPERTS] = any(of_experts)
    parts[Part.DENSE_LAYERS] = any(of_experts) and not all(of_experts)
    parts[Part.QK_NORM] = any(_QUERY_NORM.fullmatch(named.own_name) and "index" not in named.path for named in modules)
    parts[Part.GATE] = any(
        named.in_attention and (_GATE.fullmatch(named.own_name) or _has_gate_beside_queries(named.module))
        for named in modules
    )
    parts[Part.LATENT] = any(_LATENT.fullmatch(named.own_name) for named in modules)
    parts[Part.SINKS] = any(
        "sink" in name for named in modules for name, _ in named.module.named_parameters(recurse=False)
    )
    sizes = sizes_of(config)
    heads = sizes.get("num_attention_heads")
    parts[Part.ONE_KEY_HEAD] = sizes.get("num_key_value_heads") == 1 and heads != 1
    return parts | _window(config) | _positions(found, outside, config) | _outside(found, outside, config)


def _has_gate_beside_queries(attention: nn.Module) -> bool:
    """Whether the projection of an attention's queries also makes a gate of its output: twice the output's channels."""
    projections = dict(attention.named_children())
    queries, output = (getattr(projections.get(name), "weight", None) for name in ("q_proj", "o_proj"))
    return queries is not None and output is not None and bool(queries.shape[0] == 2 * output.shape[1])


def _pairs(found: Discovered, layers: Sequence[list[_Named]]) -> Iterator[tuple[Any, list[tuple[str, nn.Module]]]]:
    for group, layer in zip(found.groups, layers, strict=True):
        yield group, [(named.own_name, named.module) for named in layer]


def _biases(modules: Iterable[_Named]) -> dict[Part, list[bool]]:
    """For each kind of bias, whether each module that may have it has one."""
    found: dict[Part, list[bool]] = {
        part: [] for part in (Part.QKV_BIAS, Part.OUTPUT_BIAS, Part.MLP_BIAS, Part.ALL_BIASES)
    }
    of_norms = []
    for named in modules:
        own = dict(named.module.named_parameters(recurse=False))
        biases = [name for name in own if "bias" in name and "correction" not in name]
        if is_norm(named.module):
            of_norms.append(bool(biases))
            continue
        dimensions = max((weight.dim() for weight in own.values()), default=0)
        if dimensions < 2:
            continue
        found[Part.ALL_BIASES].append(bool(biases))
        if dimensions > 2:
            found[Part.MLP_BIAS].append(bool(biases))
        elif named.in_attention:
            if _QKV.fullmatch(named.own_name):
                found[Part.QKV_BIAS].append(bool(biases))
            elif _OUTPUT.fullmatch(named.own_name):
                found[Part.OUTPUT_BIAS].append(bool(biases))
        elif _MLP.fullmatch(named.own_name):
            found[Part.MLP_BIAS].append(bool(biases))
    return found | {Part.NORM_BIAS: of_norms or [False]}


def _is_called_norm(module: nn.Module) -> bool:
    """Whether a module without submodules is a norm by its type's name; some norms have no weights."""
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def _is_root_mean_square(module: nn.Module) -> Iterator[bool]:
    if isinstance(module, nn.LayerNorm):
        yield False
    elif is_norm(module):
        yield from [True] if "RMS" in type(module).__name__ else [True, False]  # not known: no agreement


def _is_gated(layer: Iterable[_Named]) -> Iterator[bool]:
    beside = [named for named in layer if not named.in_attention]
    names = {named.own_name for named in beside}
    names |= {name for named in beside for name, _ in named.module.named_parameters(recurse=False)}
    if any(_GATED.fullmatch(name) for name in names):
        yield True
    elif any(_UNGATED.fullmatch(name) for name in names):
        yield False


def _has_feed_forward(layer: Sequence[_Named]) -> bool:
    """Whether a layer has experts, or a projection of a feed-forward."""
    return bool(experts_in(layer[0].module)) or any(
        named.own_name == "experts" or (not named.in_attention and _MLP.fullmatch(named.own_name)) for named in layer
    )


def _norms_of(layer: Iterable[_Named]) -> list[str]:
    """The names of the norms that are the layer's own children."""
    return [named.path for named in layer if "." not in named.path and is_norm(named.module)]


def _norms_before(layer: Iterable[_Named]) -> Iterator[bool]:
    if any(_NORM_BEFORE.fullmatch(name) for name in _norms_of(layer)):
        yield True


def _norms_after(layer: Iterable[_Named]) -> Iterator[bool]:
    norms = _norms_of(layer)
    if any(_NORM_AFTER.fullmatch(name) for name in norms):
        yield True
    elif len(norms) <= 2 and any(_NORM_BEFORE.fullmatch(name) for name in norms):
        yield False


def _is_parallel(layer: Iterable[_Named], config: Any) -> Iterator[bool]:
    """A layer with one norm feeds attention and feed-forward alike; of one with two, the config may say so."""
    said = [
        value_of(name, config) for name in ("use_parallel_residual", "parallel_attn") if hasattr(type(config), name)
    ]
    if value_of("new_decoder_architecture", config):
        yield True
    elif said:
        yield bool(said[0])
    else:
        norms = len(_norms_of(layer))
        yield from () if norms == 0 else [norms == 1]


def _shares_experts(layer: Iterable[_Named]) -> Iterator[bool]:
    """Whether a mixture of experts has a feed-forward that every token visits; nothing of a dense layer."""
    named_so = any(_SHARED.search(named.own_name) for named in layer)
    root = next(iter(layer)).module
    for name, experts in experts_in(root).items():
        parent = root.get_submodule(name.rpartition(".")[0])
        total = next(weight.shape[0] for weight in experts.parameters(recurse=False) if weight.dim() == 3)
        beside = [
            weight
            for sibling in parent.children()
            if sibling is not experts
            for weight in sibling.parameters()
            if weight.dim() == 2 and weight.shape[0] != total
        ]
        yield named_so
        if parent is not root:
            yield bool(beside)


def _window(config: Any) -> dict[Part, bool]:
    """Whether a layer has a window; left out where the kinds of layers do not tell whether the size is used."""
    has_size = hasattr(type(config), "sliding_window") and bool(value_of("sliding_window", config))
    kinds = value_of("layer_types", config) if hasattr(type(config), "layer_types") else None
    if has_size and kinds and not any("full" not in str(kind) for kind in kinds):
        return {}
    return {Part.WINDOW: has_size}


def _positions(found: Discovered, outside: Sequence[nn.Module], config: Any) -> dict[Part, bool]:
    modules = [*outside, *(module for group in found.groups for module in group.layer.modules())]
    words = found.model.get_input_embeddings()  # type: ignore[operator]
    rows = position_field(config)[1]
    table = any(module is not words and is_position_table(module, rows) for module in outside)
    rotary = any("rotary" in type(module).__name__.lower() for module in modules) or hasattr(type(config), "rotary_dim")
    if hasattr(type(config), "alibi"):
        alibi = bool(value_of("alibi", config))
        rotary = rotary and not alibi
    else:
        alibi = not rotary and any("alibi" in name for module in outside for name in dir(type(module)))
    return {Part.POSITION_TABLE: table, Part.ROTARY: rotary, Part.ALIBI: alibi}


def _outside(found: Discovered, outside: Sequence[nn.Module], config: Any) -> dict[Part, bool]:
    head, words = found.model.get_output_embeddings(), found.model.get_input_embeddings()  # type: ignore[operator]
    parts: dict[Part, bool] = {}
    if head is not None:
        parts[Part.HEAD_BIAS] = getattr(head, "bias", None) is not None
        tied = head.weight is words.weight
        if tied == bool(value_of("tie_word_embeddings", config)):
            parts[Part.TIED] = tied
    names = {module: name.rpartition(".")[2] for name, module in found.model.named_modules()}
    norms = [names[module] for module in outside if is_norm(module) or _is_called_norm(module)]
    if not norms or any(_FINAL_NORM.fullmatch(name) for name in norms):
        parts[Part.FINAL_NORM] = bool(norms)
    return parts
