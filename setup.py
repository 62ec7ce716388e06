"""Only what pyproject.toml cannot say: the C extension, which is left out where it can't be built."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        # needs a C compiler and libjpeg-turbo's headers (Debian: libjpeg-dev); pipeline.jpeg does without it otherwise
        Extension(
            "pipeline._jpeg",
            ["pipeline/_jpeg.c"],
            libraries=["jpeg"],
            extra_compile_args=["-O3", "-std=c99", "-Wall", "-Wextra"],
            optional=True,
        )
    ]
)
