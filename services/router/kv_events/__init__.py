"""The router's side of `baton.kv_events`: what each worker says of its prefix cache, kept exactly in the index.

`replica.py` decides what a batch means, without I/O; `subscriber.py` reads sockets; `subscribers.py` has one of
them for each worker.
"""
