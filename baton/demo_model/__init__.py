"""The model that `make run` serves by default: a tiny Llama trained on Python's own documentation.

The folder is laid out as a published one; README.md is its model card, `demo/` is how it was made.
"""

import pathlib

PATH = pathlib.Path(__file__).parent
