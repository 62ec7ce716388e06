"""The C extensions, which pyproject.toml can't declare. They are optional: skipped if they can't be built."""

from setuptools import Extension, setup

FLAGS = ["-O3", "-std=c99", "-Wall", "-Wextra"]

setup(
    ext_modules=[
        # needs a C compiler and libjpeg-turbo's headers (Debian: libjpeg-dev); imaging/jpeg.py works without it
        Extension(
            "pipeline.imaging._jpeg",
            ["pipeline/imaging/_jpeg.c"],
            depends=["pipeline/imaging/_libjpeg_errors.h", "pipeline/imaging/_huffman.h"],
            libraries=["jpeg", "dl"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        # needs the same; required by data_prep.shard --restart, and makes --upright lossless
        Extension(
            "data_prep.images._lossless",
            ["data_prep/images/_lossless.c"],
            depends=["pipeline/imaging/_libjpeg_errors.h"],
            libraries=["jpeg"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        # need a C compiler; imaging/bicubic.py and data_prep work without them
        Extension(
            "pipeline.imaging._bicubic", ["pipeline/imaging/_bicubic.c"], extra_compile_args=FLAGS, optional=True
        ),
        Extension("data_prep._sample", ["data_prep/_sample.c"], extra_compile_args=FLAGS, optional=True),
        Extension(
            "data_prep.sources._tar_headers",
            ["data_prep/sources/_tar_headers.c"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
    ]
)
