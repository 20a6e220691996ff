"""The process that hosts one engine, mounts a role's servicer and keeps its lease in the registry."""
