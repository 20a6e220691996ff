"""The decode role: its servicer (gRPC edge), reservations, and its scheduler (continuous batching)."""
