"""Which stored tensors belong to which tensors of a model, and whether they fit. Torch-free.

Stored names, their shapes and the shapes of the model's tensors go in; an error that names tensors comes out.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch_models.errors import CheckpointError, show_name
from torch_models.fields.config import family
from torch_models.fields.file import CONFIG_FILE
from torch_models.fields.stored_names import Place, Shape, is_irrelevant, parts_of, places_of
from torch_models.spec import ModelSpec

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
DECODER = "model."
LAYERS = f"{DECODER}layers."
MTP_COPIES = (".embed_tokens.weight", ".shared_head.head.weight")  # in MTP layers: copies of main-model weights
LONGEST_NUMBER = 9  # digits of the number of a layer
EXAMPLES = 3  # number of tensors that an error message names for each kind of mismatch


class TensorEntry(NamedTuple):
    """A stored tensor: the name of its file, and its dtype and shape; both None if the file is not there."""

    file: str
    dtype: str | None
    shape: Shape | None


class StoredParts(NamedTuple):
    """The names of a checkpoint's tensors, by the part of the model that they belong to."""

    main: list[str]
    mtp: list[str]  # of multi-token-prediction layers, without copies of weights of the main model
    copies: list[str]  # of the embedding and the head: of tied weights, and in multi-token-prediction layers
    irrelevant: list[str]  # no weights
    left_out: str | None  # the name, of embedding and head, that a tied model's own tensors are not compared under


def parts_of_checkpoint(names: Iterable[str], spec: ModelSpec) -> StoredParts:
    """Assign each stored name to a part of the model.

    A tied tensor has two names. A checkpoint stores it under one of them, usually the embedding's, or under both.
    """
    names, config = list(names), family(spec.model_type).Config
    left_out = None
    if spec.tie_word_embeddings:
        has_embedding = any(places_of(name, config.stored_names)[0].native == EMBEDDING for name in names)
        left_out = EMBEDDING if HEAD in names and not has_embedding else HEAD
    parts = StoredParts([], [], [], [], left_out)
    for name in names:
        if is_irrelevant(name, config.irrelevant_tensors):
            parts.irrelevant.append(name)
        elif _is_mtp(name, spec):
            (parts.copies if name.endswith(MTP_COPIES) else parts.mtp).append(name)
        else:
            (parts.copies if name == left_out else parts.main).append(name)
    return parts


def lacks_prefix(names: Iterable[str], spec: ModelSpec) -> bool:
    """Whether these are the stored names of a decoder without its head, in a family whose names are native ones."""
    names, stored_names = list(names), family(spec.model_type).Config.stored_names
    if EMBEDDING not in parts_of(EMBEDDING, 0, stored_names).values():
        return False
    return HEAD not in names and not any(places_of(name, stored_names)[0].native.startswith(LAYERS) for name in names)


def _is_mtp(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor belongs to an MTP layer of the config; their numbers follow those of the main model."""
    if not spec.mtp_layers or not name.startswith(LAYERS):
        return False
    number = name.removeprefix(LAYERS).partition(".")[0]
    return (
        number.isdecimal()
        and len(number) < 10
        and spec.num_layers <= int(number) < spec.num_layers + len(spec.mtp_layers)
    )


def places_in(
    shapes: Mapping[str, Shape], found: Mapping[str, TensorEntry], model_type: str, folder: object
) -> dict[str, tuple[Place, ...]]:
    """Return the places of each tensor of `found` in the tensors of a model of the family `model_type`.

    `shapes` are those of the model's tensors by native name. Raises `CheckpointError` unless the stored tensors fill
    each part of the model's tensors exactly once. Shapes must match, as far as they are known, and no stored tensor may
    be left over.
    """
    stored_names = family(model_type).Config.stored_names
    places = {name: places_of(name, stored_names) for name in found}
    filled: dict[str, dict[Place, str]] = {}
    misshapen, missing, surplus, twice = [], [], [], []
    for name, own in places.items():
        file, _, shape = found[name]
        whole_shape = shapes.get(own[0].native)
        if whole_shape is None or (own[0].expert is not None and own[0].expert >= whole_shape[0]):
            surplus.append(f"{name} in {file}")
            continue
        expected = own[0].shape_in(whole_shape)
        if shape not in (None, expected):
            misshapen.append(f"{name} in {file} has shape {shape}, must be {expected}")
        if own[0] in filled.get(own[0].native, ()):
            twice.append(f"{name} in {file} is also {filled[own[0].native][own[0]]}")
        for place in own:
            filled.setdefault(place.native, {})[place] = name
    for native, whole_shape in shapes.items():
        parts = filled.get(native, {})
        whole = parts.pop(Place(native), None)
        wanted = parts_of(native, whole_shape[0], stored_names)
        if whole:
            twice += [f"{name} is also in {whole}" for name in parts.values()]
        elif parts or not any(place.expert is not None for place in wanted):
            missing += [f"{name} {part.shape_in(whole_shape)}" for part, name in wanted.items() if part not in parts]
        else:
            missing.append(f"{native} {whole_shape}")
    missing = list(dict.fromkeys(missing))
    refuse_misfits(folder, {"misshapen": misshapen, "missing": missing, "surplus": surplus, "stored twice": twice})
    return places


def refuse_misfits(folder: object, kinds: Mapping[str, list[str]]) -> None:
    """Raise `CheckpointError` with the number of tensors of each kind of mismatch and some names, if there are any."""
    clauses = [f"{len(found)} {kind}: {_examples(found)}" for kind, found in kinds.items() if found]
    if clauses:
        raise CheckpointError(f"{folder}: tensors that do not fit {CONFIG_FILE}: {'; '.join(clauses)}")


def _examples(found: list[str]) -> str:
    return ", ".join(map(show_name, found[:EXAMPLES])) + (", …" if len(found) > EXAMPLES else "")
