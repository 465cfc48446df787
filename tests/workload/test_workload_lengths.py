"""Length laws give the percentiles they are asked for, and their texts are understood or refused clearly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebatch.workload.lengths import Empirical, Fixed, LogNormal, Uniform, parse_length

lows = st.integers(1, 5000)
laws = st.one_of(
    st.builds(Fixed, lows),
    st.builds(lambda low, more: Uniform(low, low + more), lows, st.integers(0, 5000)),
    st.builds(
        lambda p50, ratio, low, more: LogNormal.fit(p50, p50 * ratio, low, low + more),
        st.floats(0.5, 1e5),
        st.floats(1.0, 20.0),
        lows,
        st.integers(0, 10**6),
    ),
    st.builds(lambda values: Empirical(tuple(values)), st.lists(lows, min_size=1)),
)


def sample(law, n=20_000, seed=0):
    return law.sample(n, np.random.default_rng(seed))


@pytest.mark.parametrize(("p50", "p90"), [(417, 1678), (139, 484), (1469, 5187.6), (2730, 3702)])
def test_lognormal_hits_its_percentiles(p50, p90):
    law = LogNormal.fit(p50, p90)
    drawn = sample(law)
    assert np.percentile(drawn, 50) == pytest.approx(p50, rel=0.04)
    assert np.percentile(drawn, 90) == pytest.approx(p90, rel=0.05)
    assert law.p90 == pytest.approx(p90)


def test_bounds_leave_percentiles_inside_them():
    drawn = sample(LogNormal.fit(417, 1678, low=100, high=2000))
    assert (drawn.min(), drawn.max()) == (100, 2000)
    assert np.percentile(drawn, 50) == pytest.approx(417, rel=0.04)
    assert np.percentile(drawn, 90) == pytest.approx(1678, rel=0.05)


def test_uniform_reaches_both_ends_evenly():
    drawn = sample(Uniform(16, 20))
    assert set(drawn.tolist()) == {16, 17, 18, 19, 20}
    assert np.bincount(drawn)[16:] == pytest.approx([4000] * 5, rel=0.06)


def test_empirical_follows_its_weights():
    drawn = sample(Empirical((5, 50, 500), (1, 0, 3)))
    assert set(drawn.tolist()) == {5, 500}
    assert np.mean(drawn == 500) == pytest.approx(0.75, abs=0.02)
    assert np.mean(sample(Empirical((5, 500))) == 5) == pytest.approx(0.5, abs=0.02)


@given(law=laws, n=st.integers(0, 40), seed=st.integers(0, 2**32))
def test_any_law_gives_whole_lengths_from_one_and_the_seed_decides(law, n, seed):
    drawn = sample(law, n, seed)
    assert drawn.dtype == np.int64 and drawn.shape == (n,)
    assert np.all(drawn >= 1)
    assert np.array_equal(drawn, sample(law, n, seed))


@given(law=laws, factor=st.floats(1e-4, 3.0))
def test_scaling_scales_and_never_reaches_zero(law, factor):
    before, after = sample(law, 200), sample(law.scaled(factor), 200)
    assert np.all(after >= 1)
    if not isinstance(law, Uniform):  # other bounds draw other numbers
        np.testing.assert_allclose(after, np.maximum(1, before * factor), atol=2.0, rtol=1e-9)


@given(law=laws.filter(lambda law: not isinstance(law, Empirical)))
def test_a_law_can_be_read_back(law):
    assert parse_length(str(law)) == law


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("128", Fixed(128)),
        ("fixed:128", Fixed(128)),
        (" Uniform: 16-256 ", Uniform(16, 256)),
        ("lognormal:p50=417,p90=1678", LogNormal.fit(417, 1678)),
        ("lognormal:median=417, p90=1678, low=4, high=2000", LogNormal.fit(417, 1678, 4, 2000)),
        ("lognormal:p50=64,sigma=0.5", LogNormal(64, 0.5)),
    ],
)
def test_texts(text, law):
    assert parse_length(text) == law


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("unifrom:16-256", "did you mean 'uniform:16-256'"),
        ("16-256", "did you mean 'uniform:16-256'"),
        ("zipf:3", "use '128', 'uniform:16-256', 'lognormal:p50=417,p90=1678' or 'empirical:FILE'"),
        ("", "use '128'"),
        ("0", "at least 1"),
        ("-5", "use '128'"),
        ("12.5", "use '128'"),
        ("uniform:256-16", "low <= high"),
        ("uniform:16", "use 'uniform:16-256'"),
        ("uniform:a-b", "'a' is not a whole number"),
        ("uniform:1-99999999999999999999", "at most"),
        ("lognormal:p50=400", "either p90 or sigma"),
        ("lognormal:p50=400,p90=500,sigma=1", "either p90 or sigma"),
        ("lognormal:p90=400", "no p50"),
        ("lognormal:p50=400,p90=300", "p50 <= p90"),
        ("lognormal:p50=400,p95=900", "did you mean 'p90'|did you mean 'p50'"),
        ("lognormal:p50=400,p50=500,p90=900", "given twice"),
        ("lognormal:400,1600", "not key=value"),
        ("lognormal:p50=nan,p90=3", "'nan' is not a number"),
        ("lognormal:p50=0,sigma=1", "above 0"),
        ("empirical", "use 'empirical:FILE'"),
        ("empirical: ", "no file; use 'empirical:FILE'"),
        ("empirical:nowhere.csv", "nowhere.csv: cannot be read: no such file"),
    ],
)
def test_wrong_texts_say_where_what_and_the_valid_form(text, hint):
    with pytest.raises(ValueError, match=hint) as caught:
        parse_length(text, "workload.prompt_lengths")
    message = str(caught.value)
    assert message.startswith(f"workload.prompt_lengths {text!r}: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    "make",
    [
        lambda: Empirical(()),
        lambda: Empirical((0, 3)),
        lambda: Empirical((1, 2), (1.0,)),
        lambda: Empirical((1, 2), (0.0, 0.0)),
        lambda: LogNormal(10, -1.0),
    ],
)
def test_impossible_laws_are_refused(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("5\n50\n\n500", Empirical((5, 50, 500))),
        ("\ufeff5\r\n 050 \r\n", Empirical((5, 50))),
        ("5,1\n50, 2.5\n500\n", Empirical((5, 50, 500), (1.0, 2.5, 1.0))),
        ("5,0\n50,.5", Empirical((5, 50), (0.0, 0.5))),
    ],
)
def test_a_file_of_lengths_is_a_law(tmp_path, text, law):
    path = tmp_path / "Lengths of Mine.csv"
    path.write_bytes(text.encode())
    assert parse_length(f"empirical:{path}") == law


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ": no length; use one whole number of tokens a line"),
        ("5\n\ntokens\n", ", line 3: 'tokens'; use one whole number of tokens a line"),
        ("5\n-3", ", line 2: '-3'"),
        ("5\n3.5", ", line 2: '3.5'"),
        ("5\n3,-1", ", line 2: '3,-1'"),
        ("5\n3,nan", ", line 2: '3,nan'"),
        ("5\n3,1,1", ", line 2: '3,1,1'"),
        ("5\x0c\n0", ", line 2: a length of 0; the nearest valid one is 1"),
        (
            f"5\n{'9' * 5000}",
            ", line 2: a length of 99999999999999999999; the nearest valid one is 1099511627776",
        ),
        ("5,0\n6,0", ": weights must be 0 or more, and one of them above 0"),
        (f"5,{'9' * 400}\n6", ": weights must be"),
    ],
)
def test_a_line_that_is_no_length_is_named(tmp_path, text, told):
    path = tmp_path / "lengths.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        parse_length(f"empirical:{path}", "output_tokens")
    message = str(caught.value)
    assert message.startswith(f"output_tokens 'empirical:{path}': {path}{told}") and "\n" not in message


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="x: not a text; use"):
        parse_length(f"empirical:{tmp_path / 'x'}")


@given(laws, st.integers(1, 100), st.integers(0, 2**32))
def test_every_32_lengths_span_the_law(law, more, seed):
    few, many = (sample(law, n, seed) for n in (64, 64 + more))
    assert few.tolist() == many[:64].tolist()
    # Of each 32 the smallest are the smallest of the law: no more than one 32nd of it lies between ranks.
    first, second = np.sort(few[:32]), np.sort(few[32:])
    assert (first[:-1] <= second[1:]).all() and (second[:-1] <= first[1:]).all()


def test_traffic_of_any_size_and_seed_brings_like_work_a_request():
    law = LogNormal.fit(30, 100)
    means = [sample(law, n, seed).mean() for n in (64, 96, 640) for seed in range(20)]
    independent = [
        np.exp(np.log(30) + law.sigma * np.random.default_rng(seed).standard_normal(64)).mean()
        for seed in range(20)
    ]
    assert np.ptp(means) < 0.4 * np.ptp(independent)
