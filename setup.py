"""Only what pyproject.toml cannot say: the C extensions, which are left out where they can't be built."""

from setuptools import Extension, setup

FLAGS = ["-O3", "-std=c99", "-Wall", "-Wextra"]

setup(
    ext_modules=[
        # needs a C compiler and libjpeg-turbo's headers (Debian: libjpeg-dev); pipeline.jpeg does without it otherwise
        Extension(
            "pipeline._jpeg",
            ["pipeline/_jpeg.c"],
            depends=["pipeline/_errors.h", "pipeline/_huffman.h"],
            libraries=["jpeg", "dl"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        # the same; data_prep.shard --restart needs it
        Extension(
            "data_prep._restart",
            ["data_prep/_restart.c"],
            depends=["pipeline/_errors.h"],
            libraries=["jpeg"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        # these need a C compiler; data_prep.images, writer and tarscan do without them otherwise
        Extension("data_prep._sample", ["data_prep/_sample.c"], extra_compile_args=FLAGS, optional=True),
        Extension("data_prep._tarscan", ["data_prep/_tarscan.c"], extra_compile_args=FLAGS, optional=True),
    ]
)
