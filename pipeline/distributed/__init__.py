"""Ranks: their numbers, their process group, their heartbeats, and their devices' speed.

No training here: a rank is a process with a number. Read ranks.py first.
"""
