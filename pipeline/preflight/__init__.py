"""Before a run: what it will need (jobs.plan) and whether this machine is sound (jobs.doctor).

Nothing here is used while training. Read estimates.py and measurements.py first.
"""
