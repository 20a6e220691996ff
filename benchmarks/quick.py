"""The `--quick` of benchmarks: other defaults, which options that are given still override."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence


def parsed(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, defaults: Mapping[str, object]
) -> argparse.Namespace:
    """The options; with --quick among them `defaults` stand for what is not given."""
    options = parser.parse_args(arguments)
    if options.quick:
        parser.set_defaults(**defaults)
        options = parser.parse_args(arguments)
    return options
