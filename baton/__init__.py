"""Baton: disaggregated LLM serving.

What router, prefill and decode workers share lives here; nothing in this package reaches up into services.
"""

__version__ = "0.1.0"
