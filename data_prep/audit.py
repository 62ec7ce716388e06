"""``python -m data_prep.audit``: the former name of vit overlap."""

from data_prep.overlap import main
from pipeline.core import cli

if __name__ == "__main__":
    cli.run(main)
