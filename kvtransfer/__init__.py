"""Moves KV blocks between workers: transports behind one contract, signed tickets, fenced ownership.

Needs torch, numpy, msgspec and xxhash alone; start reading at `base.py`, then `agent.py`.
"""
