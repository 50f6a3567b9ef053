"""What a few runs say about all the runs that there could be."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def interval(sample: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of the mean of a ``sample`` (N,), by Student's t; NaN for N = 1."""
    count = len(sample)
    if count < 2:
        return float('nan')
    return float(stats.t.ppf(0.975, count - 1) * np.std(sample, ddof=1) / count**0.5)


def paired_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of the t-test that the pairs of two samples (N,) have no mean difference."""
    return float(stats.ttest_rel(first, second).pvalue)
