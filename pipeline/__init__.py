"""The training library. Importing the package itself imports nothing heavy."""
