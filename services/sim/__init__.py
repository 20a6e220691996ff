"""`baton sim`: a fleet on a virtual clock, with the router's own placement and the workers' own block managers.

`simulation.py` reads as the life of a request, as `baton.router.request_flow` does live; start there.
"""
