"""One row of a table to take away."""

from typing import NamedTuple


class TidyRow(NamedTuple):
    """One number of a result, as the JSON document has it.

    pandas and polars read a list of these in one call, with the names of the columns, and polars with their types:
    `value` is Float64 there, whatever the first rows have. Integers are exact here, of any size; a float has 53 bits.
    """

    scope: str  # what it is about, from the whole to the part: "deepseek_v3 / step / optimiser step"
    component: str  # a part of the quantity, as `attention`, or `total`; empty where it is not divided
    quantity: str  # as in the JSON document: `forward_flops`
    value: float  # an int where the number is exact; 1 and 0 for yes and no
    unit: str  # spelt out: FLOP, byte, parameter, token, second, USD; of a yes or no "1 = yes"
    convention: str  # the sentence that says how it is counted; empty of what is given or plainly counted
