"""Before a run: what it will need (jobs.plan) and whether the machine is fit for it (jobs.doctor).

Nothing here is used while training. Read estimates.py and measurements.py first.
"""
