"""Only what pyproject.toml cannot say: the C extensions, which are left out where they can't be built."""

from setuptools import Extension, setup

FLAGS = ["-O3", "-std=c99", "-Wall", "-Wextra"]

setup(
    ext_modules=[
        # needs a C compiler and libjpeg-turbo's headers (Debian: libjpeg-dev); imaging/jpeg.py can do without
        Extension(
            "pipeline.imaging._jpeg",
            ["pipeline/imaging/_jpeg.c"],
            depends=["pipeline/imaging/_libjpeg_errors.h", "pipeline/imaging/_huffman.h"],
            libraries=["jpeg", "dl"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        # the same; data_prep.shard --restart needs it, and --upright is lossless with it
        Extension(
            "data_prep.images._lossless",
            ["data_prep/images/_lossless.c"],
            depends=["pipeline/imaging/_libjpeg_errors.h"],
            libraries=["jpeg"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        # these need a C compiler; imaging/bicubic.py and data_prep can do without
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
