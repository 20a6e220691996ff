"""The HTTP face of the router: OpenAI request and response shapes, validation, SSE, errors."""
