"""Moves KV blocks between workers: transports behind one contract, signed tickets, fenced ownership.

Needs torch, numpy and msgspec alone (pyzmq for `tcp://`); start reading at `base.py`, then `agent.py`.
"""
