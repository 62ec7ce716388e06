"""The version of this code. pyproject.toml reads it here: the code also runs where it isn't installed."""

VERSION = "0.2.0"
