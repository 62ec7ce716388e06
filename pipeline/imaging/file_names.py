"""Which files are images, by the endings of their names."""

# what datasets hold: JPEGs, and what data_prep encodes as JPEG
DATASET_ENDINGS = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "webp"})
READABLE_ENDINGS = DATASET_ENDINGS | {"tif", "tiff"}  # what a prediction reads


def ending(name: str) -> str:
    """The part after the last dot, in lower case; all of a name without dots."""
    return name.rpartition(".")[2].lower()
