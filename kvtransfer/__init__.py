"""Moves KV blocks between workers: transports behind one contract, signed tickets, fenced ownership.

Needs torch, numpy, msgspec and xxhash alone; start reading at `base.py`, then `agent.py`.
From the wire to the pool: `stream_link` -> `receiving` -> `carrier` -> `inbox`, which alone writes.
"""
