"""Generated protobuf stubs (`make proto`) and `convert.py`, the only protobuf <-> dataclass crossing."""
