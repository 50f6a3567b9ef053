import math

import numpy as np
import pytest
from scipy import stats

from overhaul.reports.statistics import interval, paired_test


def test_interval_by_hand():
    # t of 3 degrees of freedom at 97.5 % is 3.1824 in every table; the deviation of 1, 2, 3, 4 is sqrt(5 / 3).
    assert interval([1, 2, 3, 4]) == pytest.approx(3.1824 * math.sqrt(5 / 3) / 2, rel=1e-4)
    assert math.isnan(interval([1]))


def test_interval_holds_the_mean_of_19_samples_in_20():
    samples = np.random.RandomState(0).normal(5, 2, (4000, 6))
    holds = [abs(sample.mean() - 5) < interval(sample) for sample in samples]
    assert np.mean(holds) == pytest.approx(0.95, abs=0.01)


def test_paired_test_by_its_formula_and_by_flipping_signs():
    random = np.random.RandomState(1)
    first = random.normal(10, 3, 12)
    second = first + random.normal(-0.6, 1, 12)  # pairs: what differs between them does not count
    difference = second - first
    t = difference.mean() / (difference.std(ddof=1) / math.sqrt(12))
    assert paired_test(first, second) == pytest.approx(2 * stats.t.sf(abs(t), 11))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 12)).reshape(12, -1)
    as_large = np.abs(difference @ signs) >= abs(difference.sum()) - 1e-9
    assert paired_test(first, second) == pytest.approx(as_large.mean(), rel=0.15)
