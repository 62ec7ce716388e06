"""Ranks: who am I, how do we meet, is everybody alive, what can this device do.

No training here: a rank is a process with a number. Read ranks.py first.
"""
