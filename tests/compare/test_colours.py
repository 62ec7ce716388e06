"""The colours of a comparison's curves, for colour-blind readers and for greyscale prints.

How others see a colour is simulated by Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation
of Color Vision Deficiency", IEEE TVCG 15 (2009), 1291-1298: their matrices of severity 1.0, on linear RGB. Distances
are CIELAB's of 1976 under D65, of which about 2.3 can just be noticed (Mahy and others, Color Research & Application
19, 1994).
"""

import io
import itertools
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest

from pipeline import compare
from pipeline.compare.html import dark_colour
from pipeline.compare.plots import MOST_COLOURS, draw_curves
from pipeline.compare.rows import rows
from pipeline.core import plotting
from pipeline.runs.curves import COLOURS
from tests.helpers.runs import read_runs, write_run

Floats = npt.NDArray[np.float64]

LEAST = 15.0  # several just noticeable differences: thin lines need more than large patches
SEEN_BY: dict[str, Any] = {
    "most": np.eye(3),
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopes": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "a grey printer": [[0.2126729, 0.7151522, 0.0721750]] * 3,
}
# IEC 61966-2-1: linear sRGB to CIE XYZ, white D65
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(colour: str, seen_by: str) -> Floats:
    """The CIELAB coordinates of ``#rrggbb``."""
    srgb = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.array(SEEN_BY[seen_by]) @ linear, 0, 1) / XYZ.sum(1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(one: str, other: str, seen_by: str) -> float:
    return float(np.linalg.norm(lab(one, seen_by) - lab(other, seen_by)))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Colour and dashes of every curve in the SVG of more runs than there are colours."""
    folder = tmp_path_factory.mktemp("runs")
    for number in range(MOST_COLOURS + 3):
        write_run(folder / f"run{number}", lr=1e-3 * (number + 1), top1=0.5 + 0.02 * number)
    figure = draw_curves(rows(read_runs(folder)), "train/loss", "samples")
    assert figure is not None
    out = io.StringIO()
    plotting.save(figure, out, format="svg")
    found = []
    for group in ElementTree.fromstring(out.getvalue()).iter("{http://www.w3.org/2000/svg}g"):
        if re.fullmatch(r"line2d_\d+", group.get("id", "")):
            for path in group.findall("{http://www.w3.org/2000/svg}path"):
                style = dict(part.split(": ") for part in path.attrib["style"].split("; "))
                if "clip-path" in path.attrib and style["stroke-width"] != "0.8":  # not the grid's
                    found.append((style["stroke"], style.get("stroke-dasharray", "")))
    assert len(found) == MOST_COLOURS + 3, found
    return found


@pytest.mark.parametrize("seen_by", [name for name in SEEN_BY if name != "a grey printer"])
def test_each_curve_has_a_colour_of_its_own_on_white(drawn: list[tuple[str, str]], seen_by: str) -> None:
    colours = sorted({colour for colour, _ in drawn})
    assert len(colours) == MOST_COLOURS + 1, "the curves beyond the best share a grey"
    for one, other in itertools.combinations([*colours, "#ffffff"], 2):
        assert apart(one, other, seen_by) >= LEAST, (one, other)


@pytest.mark.parametrize("seen_by", [name for name in SEEN_BY if name != "a grey printer"])
def test_each_curve_of_the_page_has_a_colour_of_its_own_on_dark_paper(seen_by: str) -> None:
    style = (Path(compare.__file__).parent / "page.css").read_text()
    dark = dict(re.findall(r"--(paper|others): (#[0-9a-f]{6})", style[style.index("prefers-color-scheme") :]))
    for one, other in itertools.combinations([*map(dark_colour, COLOURS), dark["paper"], dark["others"]], 2):
        assert apart(one, other, seen_by) >= LEAST, (one, other)


def test_curves_that_look_alike_in_grey_have_other_dashes(drawn: list[tuple[str, str]]) -> None:
    curves = sorted(set(drawn))
    assert len(curves) == MOST_COLOURS + 1
    for (one, dashes), (other, others) in itertools.combinations(curves, 2):
        assert dashes != others or apart(one, other, "a grey printer") >= LEAST, (one, other)


def test_the_simulation_finds_a_palette_that_does_not_serve() -> None:
    """Red and green of matplotlib's own palette, which most people tell apart at a glance."""
    red, green = "#d62728", "#2ca02c"
    assert apart(red, green, "most") > 100
    assert apart(red, green, "deuteranopes") < apart(red, green, "most") / 3
    assert apart("#ff7f0e", "#bcbd22", "deuteranopes") < LEAST
    assert apart("#56B4E9", "#E69F00", "a grey printer") < 1, "equal in grey: their dashes tell them apart"
