"""The router: HTTP API → request flow → placement.

`request_flow.py` reads top to bottom as the whole life of a request; start there.
"""
