"""Student's t against scipy's."""

from __future__ import annotations

import pytest
from scipy.special import stdtrit

from tunebatch.measure.student import t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 10, 63, 1000])
@pytest.mark.parametrize("p", [0.5, 0.75, 0.95, 0.975, 0.995, 0.9999])
def test_quantiles_are_those_of_scipy(p: float, degrees: int) -> None:
    assert t_quantile(p, degrees) == pytest.approx(stdtrit(degrees, p), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("p", "degrees"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_what_has_no_quantile_is_refused(p: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        t_quantile(p, degrees)
