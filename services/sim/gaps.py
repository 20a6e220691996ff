"""Inter-token latencies of a whole run: each as often as it was seen, without a number kept for every token."""

from __future__ import annotations

from array import array

import numpy as np


class Gaps:
    def __init__(self) -> None:
        self._gaps_s = array("d")
        self._counts = array("q")

    def add(self, gap_s: float, count: int) -> None:
        if count:
            self._gaps_s.append(gap_s)
            self._counts.append(count)

    def percentiles(self, percents: tuple[float, ...]) -> list[float]:
        """The smallest gap that `percent` of all gaps do not exceed; 0 where there is none."""
        if not self._gaps_s:
            return [0.0] * len(percents)
        gaps_s, counts = np.frombuffer(self._gaps_s), np.frombuffer(self._counts, np.int64)
        order = np.argsort(gaps_s, kind="stable")
        cumulated = np.cumsum(counts[order])
        ranks = np.array(percents) / 100 * cumulated[-1]
        positions = np.minimum(np.searchsorted(cumulated, ranks), len(order) - 1)
        return [float(gap_s) for gap_s in gaps_s[order][positions]]

    def __len__(self) -> int:
        return sum(self._counts)
