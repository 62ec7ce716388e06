"""How an evaluation image becomes the model's square input, by name: what data.eval_resize and model.json hold.

data.eval_resize takes ``square``, ``central`` and ``bicubic``. Models of other projects need more; their names are
explicit: ``square-bicubic``, ``central-0.9-bicubic`` (short side to size / 0.9, then the central square).
"""

from typing import Literal, NamedTuple, cast

from pipeline.core.errors import UserError

SMALLEST = 0.01  # crop: the short side is then a hundred times the model's input
CENTRAL = 8 / 7  # short side over crop: 448 for 384 px and 256 for 224 px, as big_vision and torchvision evaluate
Interpolation = Literal["bilinear", "bicubic"]


class Geometry(NamedTuple):
    crop: float | None  # side of the middle square over the short side; None: the whole image, squashed
    interpolation: Interpolation  # bilinear: from the 2 x 2 nearest pixels; bicubic: antialiased, as Pillow

    def short_side(self, size: int) -> int:
        """Pixels that the short side is resized to before the middle square of ``size`` is cut out."""
        assert self.crop is not None
        return round(size / self.crop)


NAMES = {
    "square": Geometry(None, "bilinear"),
    "central": Geometry(1 / CENTRAL, "bilinear"),
    "bicubic": Geometry(1.0, "bicubic"),
}


def geometry(name: str) -> Geometry:
    """The geometry called ``name``. Raises UserError if there is none."""
    if name in NAMES:
        return NAMES[name]
    kind, *words = name.split("-", 2)
    try:
        crop = float(words.pop(0)) if kind == "central" else None
        (interpolation,) = words
        if (
            kind in ("square", "central")
            and interpolation in ("bilinear", "bicubic")
            and (crop is None or SMALLEST <= crop <= 1)
        ):
            return Geometry(crop, cast(Interpolation, interpolation))
    except (ValueError, IndexError):
        pass
    raise UserError(f"resize {name!r} is unknown: it must be one of {', '.join(NAMES)} or central-CROP-bicubic")


def name_of(crop: float | None, interpolation: str, size: int, source: str) -> str:
    """The name of a geometry that another project's file states. Raises UserError if it is not supported."""
    if interpolation not in ("bilinear", "bicubic"):
        raise UserError(
            f"{source!r} resizes images by {interpolation!r}: only bilinear and bicubic are supported; change it "
            "in the file if the model doesn't depend on it"
        )
    if crop is None:
        return "square" if interpolation == "bilinear" else "square-bicubic"
    if not SMALLEST <= crop <= 1:
        raise UserError(f"{source!r} has a crop of {crop:g} of the short side: it must be from {SMALLEST} to 1")
    if interpolation == "bilinear" and abs(size / crop - size * CENTRAL) < 1:
        return "central"
    return "bicubic" if crop == 1 and interpolation == "bicubic" else f"central-{crop:g}-{interpolation}"
