"""The commands: each parses its command line, makes one call into pipeline and prints the result.

No command imports another, and nothing imports a command. Read pretrain.py first; vit.py lists them all.
"""

from pipeline.core import startup

startup.report_in_one_line()
