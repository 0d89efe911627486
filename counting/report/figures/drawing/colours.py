"""One colour and hatch for each thing that figures show: the same component looks the same in all of them.

The colours are those of Okabe and Ito (2008, "Color Universal Design"), which colour-blind readers tell apart, with
greys. Neighbours in a stack differ in luminance or hatch, so that a black-and-white print shows them too.
"""

from typing import Literal, NamedTuple


class Look(NamedTuple):
    """How one thing is drawn, and its name in a legend; `light` says that black text is readable on it."""

    colour: str
    hatch: str
    name: str
    light: bool = True


BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY, PALE = "#8C8C8C", "#D9D9D9"
INK, FAINT = "#1A1A1A", "#595959"  # text, and text of less weight

COMPONENT_LOOKS = {
    "word_embedding": Look(YELLOW, "", "word embedding"),
    "positional_embedding": Look(PALE, "++", "positional embedding"),
    "attention": Look(ORANGE, "", "attention"),
    "indexer": Look(ORANGE, "xx", "indexer of attention"),
    "mlp": Look(SKY, "-", "MLP"),
    "router": Look(BLACK, "", "router", light=False),
    "routed_experts": Look(BLUE, "", "routed experts", light=False),
    "shared_experts": Look(GREEN, "//", "shared experts", light=False),
    "norm": Look(GREY, "", "norm"),
    "lm_head": Look(PURPLE, "\\\\", "LM head"),
    "other": Look(PALE, "xx", "other"),
    "mtp": Look(VERMILLION, "xx", "multi-token prediction", light=False),
}

MEMORY_LOOKS = {
    "parameters": Look(BLUE, "", "parameters", light=False),
    "gradients": Look(SKY, "|", "gradients"),
    "optimizer_state": Look(GREEN, "//", "optimiser state", light=False),
    "activations": Look(ORANGE, "", "activations"),
    "gathered_parameters": Look(YELLOW, "||", "gathered parameters"),
    "communication_buffers": Look(GREY, "xx", "communication buffers"),
    "logits_and_loss": Look(PURPLE, "\\\\", "logits and loss"),
    "transients": Look(VERMILLION, "", "transients", light=False),
}
RESERVED_LOOK = Look("white", "", "reserved (estimate)")


class Series(NamedTuple):
    """How one of several models, GPUs or laws is drawn; in black and white the lines and markers tell them apart."""

    colour: str
    line: Literal["-", "--", "-.", ":"] | tuple[float, tuple[float, ...]]
    marker: str


SERIES = (
    Series(BLUE, "-", "o"),
    Series(VERMILLION, "--", "s"),
    Series(GREEN, "-.", "^"),
    Series(PURPLE, ":", "D"),
    Series(ORANGE, (0, (5, 1, 1, 1, 1, 1)), "v"),
    Series(SKY, (0, (1, 1)), "P"),
    Series(BLACK, (0, (8, 2)), "X"),
    Series(GREY, (0, (3, 3)), "*"),
)


def crossed(colour: int, line: int) -> Series:
    """The look of a pair of things: the colour says which the first is, line and marker which the second is."""
    return Series(series(colour).colour, series(line).line, series(line).marker)


def series(number: int) -> Series:
    """The look of the one with this number, from 0; they begin again after the last."""
    return SERIES[number % len(SERIES)]
