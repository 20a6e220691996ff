"""Who is in the fleet: the registry contract (`base.py`) and what stands behind it."""
