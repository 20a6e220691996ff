"""Which workers should have which role, and how many there should be. Pure: a history of observations and a time
in, a plan with its reasons out (`decide.py`); no clock, no I/O. `baton.sim.elastic` acts on it on virtual time."""
