"""The prefill role: its servicer (gRPC edge) and its scheduler (which chunk runs next, what leaves when)."""
