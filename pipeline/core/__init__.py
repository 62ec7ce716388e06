"""What every other package needs: errors, files, locks, logging, retries, the command-line parser.

Nothing here knows about images, models or runs, and nothing here imports another package of the project. Only commands
import cli.py. Read errors.py first.
"""
