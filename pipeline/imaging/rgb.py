"""Convert any Pillow image to RGB, so that data preparation and prediction see the same pixels."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: 16-bit grey keeps its high byte (Pillow clips at 255), transparent pixels become white."""
    if image.mode.startswith("I"):  # before transparency: a transparent grey is not composed, but its values count
        high_HW = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(high_HW.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
