"""Figures as pictures in the page: SVG, for a wide window at the size of a slide, for a narrow one of a column."""

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from counting.report.page.elements import Html, element
from counting.report.results import Results
from torch_models.errors import UserError

MOST_CHARACTERS = 200_000  # of one figure, both sizes together
NARROW = "screen and (max-width: 40rem)"  # as in the style sheet
UNQUOTED = "!$'()*/:;=?@"  # what stands as it is in an address that an attribute has, also where it has several


class Picture(NamedTuple):
    """One figure as SVG, in both sizes, and its caption."""

    kind: str
    caption: str
    slide: str
    column: str  # empty, as the slide, if there are too many things for a picture

    @property
    def is_large(self) -> bool:
        """Whether the page does without it, as it is of very many things."""
        return not self.slide or len(self.slide) + len(self.column) > MOST_CHARACTERS


def pictures_of(results: Results) -> list[Picture] | str:
    """The figures that these results have; or, where they cannot be drawn, in words why."""
    from counting.report.figures import caption, embedded_svg, kinds_of, why_too_much

    try:
        return [
            Picture(
                kind,
                caption(kind, results),
                embedded_svg(kind, results, "slide"),
                embedded_svg(kind, results, "column"),
            )
            if why_too_much(kind, results) is None
            else Picture(kind, "", "", "")
            for kind in kinds_of(results)
        ]
    except UserError as error:  # matplotlib is an extra
        return f"The page has no figures: {error}."


def pictures_in_html(pictures: Sequence[Picture], *, columns: bool) -> Html:
    """One figure below the other; without `columns` also a narrow window has the size of a slide."""
    shown = (_figure(picture, columns) for picture in pictures if not picture.is_large)
    large = ", ".join(picture.kind for picture in pictures if picture.is_large)
    left_out = (element("p", f"Left out, because it is of too many things: {large}.", class_="hint"),) * bool(large)
    return element("section", element("h2", "Figures"), *shown, *left_out)


def _figure(picture: Picture, columns: bool) -> Html:
    narrow = (element("source", media=NARROW, srcset=_inside(picture.column)),) if columns else ()
    wide = element("img", src=_inside(picture.slide), alt=f"{picture.kind}: {picture.caption}")
    return element("figure", element("picture", *narrow, wide), element("figcaption", picture.caption))


def _inside(svg: str) -> str:
    """A picture as the address of itself. As a document of its own its ids and styles meet no others."""
    return f"data:image/svg+xml,{quote(' '.join(svg.split()), safe=UNQUOTED)}"
