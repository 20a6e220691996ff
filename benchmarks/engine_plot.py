"""The ratios of `engine.py` as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from rows import Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw(rows: Sequence[Row], path: Path) -> None:
    """One group of bars a work, one bar a peer: how many times its tokens a second Baton computes."""
    compared = [row for row in rows if row.ratio is not None]
    names = list(dict.fromkeys(row.name for row in compared))
    peers = list(dict.fromkeys(row.peer for row in compared))
    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    width = 0.8 / max(1, len(peers))
    for index, peer in enumerate(peers):
        ratios = {row.name: row.ratio for row in compared if row.peer == peer}
        places = [place + index * width for place, name in enumerate(names) if name in ratios]
        axes.bar(
            places, [ratio for ratio in ratios.values() if ratio is not None], width, label=peer, align="edge"
        )
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_xticks([place + 0.4 for place in range(len(names))], names, rotation=20)
    axes.set_ylabel("Baton's tokens/s over the peer's")
    axes.legend()
    figure.savefig(path)
    plt.close(figure)
