"""Which workers should have which role. Pure: a history of observations and a time in, a plan with its reasons out
(`decide.py`); no clock, no I/O. `baton.router.elastic` acts on it, and `baton.sim.elastic` on virtual time."""
