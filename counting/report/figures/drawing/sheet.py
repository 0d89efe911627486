"""What all figures share: their sizes and fonts, title and caption, axes with units, and files that do not vary."""

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from counting.report.figures.drawing.colours import FAINT, INK, Look, Series
from counting.report.figures.drawing.letters import width_of, wrapped
from counting.report.figures.kinds import FigureFormat, FigureSize

Units = tuple[tuple[int, str], ...]  # powers of ten with their symbols, the largest first

_NOT_PRINTED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # XML takes few of these
_POINTS_PER_INCH = 72
_LINE_HEIGHT = 1.3
_ROOM = 0.94  # of the width of a line: hinted letters are a little wider than they are by the font

_LEGEND = {"columnspacing": 1.4, "handletextpad": 0.5}  # in units of the font's size
_AREA_IN_LEGEND, _LINE_IN_LEGEND = 1.6, 4.0  # so long that a line shows its dashes on both sides of the marker


class _Measures(NamedTuple):
    """Inches of a sheet, dots per inch of its PNG, points of its fonts and lines."""

    width: float
    height: float | None  # None: as high as what stands on it
    dpi: int
    title: float
    text: float
    small: float
    line: float


_MEASURES: dict[str, _Measures] = {
    "slide": _Measures(16, 9, 100, title=28, text=19, small=14.5, line=3),
    "column": _Measures(3.3, None, 300, title=8.2, text=6.8, small=5.6, line=1.1),
}

# No date and no version in a file: the same results give the same bytes.
_METADATA: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


class Sheet:
    """One figure to draw on, of the size of a slide or of a column; `caption` is what stands at its foot."""

    def __init__(self, size: FigureSize, caption: str = "") -> None:
        self.size = size
        self.measures = _MEASURES[size]
        self.is_slide = size == "slide"
        self.figure = Figure()
        self._caption = caption

    @contextmanager
    def style(self) -> Iterator[None]:
        """Context with the fonts and lines of this sheet, whatever the user's own settings of matplotlib are."""
        with mpl.rc_context():
            settings: Any = self._settings()
            defaults: Any = {key: value for key, value in mpl.rcParamsDefault.items() if "backend" not in key}
            mpl.rcParams.update(defaults | settings)
            yield

    def panels(
        self,
        rows: int,
        columns: int,
        *,
        title: str,
        subtitle: str = "",
        legend: Sequence[Artist] = (),
        inches: float = 2,
        **ratios: Sequence[float],
    ) -> list[Axes]:
        """Axes in rows, under the title and the legend, above the caption.

        On a column they are `inches` high, and the sheet as high as it needs; a slide has its height.
        """
        measures, figure = self.measures, self.figure
        margin = self._margin
        blocks = [  # text, size, weight, colour
            (self._lines(title, measures.title, "bold"), measures.title, "bold", INK),
            (self._lines(subtitle, measures.text), measures.text, "normal", FAINT),
        ]
        handle = _LINE_IN_LEGEND if any(isinstance(entry, Line2D) for entry in legend) else _AREA_IN_LEGEND
        in_a_row, legend_inches = self._legend_size([str(entry.get_label()) for entry in legend], handle)
        head = sum(self._inches(size, lines) for lines, size, *_ in blocks) + legend_inches
        caption_lines = self._lines(self._caption, measures.small)
        foot = self._inches(measures.small, caption_lines) + (margin / 2 if caption_lines else 0)
        height = measures.height or head + inches + foot + 2.2 * margin
        figure.set_size_inches(measures.width, height)
        left, top = margin / measures.width, height - 0.7 * margin
        for lines, size, weight, colour in blocks:
            figure.text(
                left,
                top / height,
                "\n".join(lines),
                size=size,
                weight=weight,
                color=colour,
                va="top",
                linespacing=_LINE_HEIGHT,
            )
            top -= self._inches(size, lines)
        if legend:
            figure.legend(
                handles=legend,
                loc="upper left",
                bbox_to_anchor=(left, top / height),
                ncols=in_a_row,
                borderpad=0.3,
                borderaxespad=0,
                handlelength=handle,
                **_LEGEND,
            )
            top -= legend_inches
        figure.text(
            left,
            0.6 * margin / height,
            "\n".join(caption_lines),
            size=measures.small,
            color=FAINT,
            va="bottom",
            linespacing=_LINE_HEIGHT,
        )
        bottom = 0.6 * margin + foot
        gap = margin / 3
        figure.set_layout_engine(
            "constrained",
            rect=(left, bottom / height, 1 - 2 * left, (top - 0.7 * margin - bottom) / height),
            w_pad=0,
            h_pad=0,
            wspace=gap / measures.width * columns * 2,
            hspace=gap / height * rows * 2,
        )
        grid = figure.add_gridspec(rows, columns, **ratios)
        return [figure.add_subplot(grid[row, column]) for row in range(rows) for column in range(columns)]

    def areas(self, looks: Iterable[Look]) -> list[Artist]:
        """Entries of a legend for areas."""
        return [Patch(facecolor=x.colour, hatch=self.hatch(x), edgecolor=INK, label=x.name) for x in looks]

    def lines(self, names: Sequence[str], looks: Sequence[Series]) -> list[Artist]:
        """Entries of a legend for lines with markers of these names and looks, in their order."""
        return [
            Line2D([], [], color=look.colour, linestyle=look.line, marker=look.marker, label=name)
            for look, name in zip(looks, names, strict=True)
        ]

    def _fix_places(self) -> None:
        """Lay the axes out, and round their places: the solver's last digits, and ids made of them, vary."""
        engine = self.figure.get_layout_engine()
        if engine is None:
            return
        engine.execute(self.figure)
        self.figure.set_layout_engine("none")
        for axes in self.figure.axes:
            x, y, width, height = (round(each, 6) for each in axes.get_position().bounds)
            axes.set_position((x, y, width, height))

    def hatch(self, look: Look) -> str:
        """The hatch of `look`, as dense for its size on a column as on a slide."""
        return look.hatch * (1 if self.is_slide else 3)

    def fits_in(self, text: str, inches: float) -> bool:
        """Whether small text is not wider than so many inches."""
        return width_of(text, self.measures.small) * 1.15 < inches * _POINTS_PER_INCH

    @property
    def _margin(self) -> float:
        return self.measures.text / _POINTS_PER_INCH

    def _legend_size(self, names: Sequence[str], handle: float) -> tuple[int, float]:
        """Entries in a row, and inches of all rows."""
        if not names:
            return 1, 0
        size, room = self.measures.small, self.measures.width - 2 * self._margin
        around = (handle + sum(_LEGEND.values())) * size
        widest = (max(width_of(name, size) for name in names) + around) / _POINTS_PER_INCH
        in_a_row = max(1, min(len(names), int(room / widest)))
        return in_a_row, (-(-len(names) // in_a_row) * 1.45 + 1) * size / _POINTS_PER_INCH

    def save(self, file_format: FigureFormat, *, transparent: bool) -> bytes:
        """The file; the same drawing gives the same bytes."""
        buffer = io.BytesIO()
        self._clean()
        with self.style(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # an SVG has the letter all the same
            self._fix_places()
            self.figure.savefig(
                buffer,
                format=file_format,
                dpi=self.measures.dpi if file_format == "png" else _POINTS_PER_INCH,
                metadata=_METADATA[file_format],
                transparent=transparent,
            )
        content = buffer.getvalue()
        return _shorter(content.decode()).encode() if file_format == "svg" else content

    def _clean(self) -> None:
        """Replace what XML does not take in texts and ids, and make each id one of its own."""
        seen = dict[str, int]()
        for artist in self.figure.findobj():
            if isinstance(artist, Text):
                artist.set_text(_NOT_PRINTED.sub("\N{REPLACEMENT CHARACTER}", artist.get_text()))
            if (gid := artist.get_gid()) is not None:
                gid = _NOT_PRINTED.sub("\N{REPLACEMENT CHARACTER}", gid)
                seen[gid] = seen.get(gid, 0) + 1
                artist.set_gid(gid if seen[gid] == 1 else f"{gid} ({seen[gid]})")

    def _lines(self, text: str, size: float, weight: str = "normal") -> list[str]:
        """`text` in lines that are not wider than the sheet."""
        room = (self.measures.width - 2 * self._margin) * _POINTS_PER_INCH * _ROOM
        return wrapped(text, room, size, weight)

    @staticmethod
    def _inches(size: float, lines: Sequence[str]) -> float:
        return len(lines) * size * _LINE_HEIGHT / _POINTS_PER_INCH

    def _settings(self) -> dict[str, Any]:
        measures = self.measures
        thin = measures.line / 3
        return {
            "text.parse_math": False,  # a dollar is a dollar
            "svg.hashsalt": "figure",
            "svg.fonttype": "none",
            "pdf.fonttype": 42,
            "font.size": measures.text,
            "axes.titlesize": measures.text,
            "axes.labelsize": measures.text,
            "xtick.labelsize": measures.small,
            "ytick.labelsize": measures.small,
            "legend.fontsize": measures.small,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlelocation": "left",
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "xtick.major.size": measures.text / 4,
            "ytick.major.size": measures.text / 4,
            "grid.color": "#E0E0E0",
            "hatch.color": INK,
            "lines.linewidth": measures.line,
            "lines.markersize": 3 * measures.line,
            **dict.fromkeys(
                (
                    "axes.linewidth",
                    "xtick.major.width",
                    "ytick.major.width",
                    "grid.linewidth",
                    "hatch.linewidth",
                    "patch.linewidth",
                ),
                thin,
            ),
        }


def _shorter(svg: str) -> str:
    """`svg` with two decimals in its paths, a hundredth of a point, and few names of fonts."""
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", path[0]), svg)
    return re.sub(r"font-family: [^;\"]+", "font-family: 'DejaVu Sans', Verdana, sans-serif", svg)


class _InUnits(MaxNLocator):
    """Ticks at round numbers of a unit, of data in units of one."""

    def __init__(self, unit: float, most: int) -> None:
        super().__init__(nbins=most, steps=[1, 2, 2.5, 5, 10])
        self._unit = unit

    def tick_values(self, vmin: float, vmax: float) -> Any:
        return [self._unit * value for value in super().tick_values(vmin / self._unit, vmax / self._unit)]


def in_units(axis: Axis, unit: float, most_ticks: int) -> None:
    """Write at most so many ticks of `axis` in this unit; data stay as they are."""
    axis.set_major_locator(_InUnits(unit, most_ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:,.6g}"))


def unit_of(largest: float, units: Units) -> tuple[float, str]:
    """The largest of the units that is not above `largest`, as a number, and its symbol."""
    return next(((10.0**power, unit) for power, unit in units if largest >= 10**power), (1.0, units[-1][1]))
