"""The engine: model, attention backends, KV pool, prefix cache, sampler, batch, the queue of prompts.

Imports torch, numpy, safetensors and msgspec alone, so that it can be tested on a bare GPU machine.
"""
