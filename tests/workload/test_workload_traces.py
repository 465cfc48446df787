"""Readers give what the publishers' files say, and broken rows are named by their line."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import EXCERPTS, TRACES, whole

from tunebatch.workload.prompts import RandomPrompts
from tunebatch.workload.spec import WorkloadSpec, build
from tunebatch.workload.traces import (
    TRACE_FORMATS,
    ReadOptions,
    TraceError,
    detect_format,
    mean_rate_per_s,
    read_trace,
)

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
ROW = "2023-11-16 18:17:03.9799600,4808,10"
ANY_TIME = ReadOptions(need_arrivals=False)


def write(path, *lines, end="\n"):
    path.write_bytes(end.join([*lines, ""]).encode())
    return path


def percentiles(values):
    return [np.mean(values), *np.percentile(values, [50, 90, 99]), max(values)]


# The publishers' files


@whole
@pytest.mark.parametrize(
    ("name", "prompt", "output", "span", "rate", "variation"),
    [
        (
            "azure_llm_2023_conv.rows_1-2000.csv",
            [1104.8, 1032, 1989.7, 4100, 7930], [264.9, 238.5, 436, 625.1, 1000], 424.3, 4.714, 1.14,
        ),
        (
            "azure_llm_2023_code.rows_1-2000.csv",
            [1986.6, 1338.5, 4892.1, 7436, 7437], [29.5, 13, 55, 287.1, 1899], 853.1, 2.344, 13.3,
        ),
    ],
)  # fmt: skip
def test_azure_2023(name, prompt, output, span, rate, variation):
    rows = read_trace(TRACES / name)
    assert len(rows) == 2000 and detect_format(TRACES / name) == "azure"
    assert percentiles([row.prompt_tokens for row in rows]) == pytest.approx(prompt, abs=0.051)
    assert percentiles([row.output_tokens for row in rows]) == pytest.approx(output, abs=0.051)
    times = np.array([row.arrival_s for row in rows])
    gaps = np.diff(times)
    assert times[0] == 0.0 and np.all(gaps > 0)
    assert times[-1] == pytest.approx(span, abs=0.051)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.005)
    own = mean_rate_per_s(times.tolist())
    assert own == pytest.approx(1999 / times[-1], rel=1e-12)
    assert own * 2000 / 1999 == pytest.approx(rate, abs=0.00051), "the published rate counts rows, not gaps"
    workload = build(
        WorkloadSpec(name="t", arrivals="trace", trace_file=TRACES / name), RandomPrompts(99), 8192
    )
    assert workload.rate_per_s == own
    assert [r.arrival_s for r in workload.requests] == pytest.approx(times, abs=1e-9)
    too_long = sum(row.prompt_tokens + row.output_tokens > 8192 for row in rows)
    assert len(workload.notes) == bool(too_long)


def test_azure_2023_keeps_the_seventh_digit():
    rows = read_trace(EXCERPTS / "azure_llm_2023_conv.rows_1-40.csv", limit=2)
    assert rows[1].arrival_s == pytest.approx(50.9951690 - 46.6805900, abs=1e-9)
    assert (rows[0].line, rows[0].prompt_tokens, rows[0].output_tokens) == (2, 374, 44)


@whole
def test_azure_2023_arrivals_agree_with_vidurs_copy():
    rows = read_trace(TRACES / "azure_llm_2023_conv.rows_1-2000.csv")
    copy = np.loadtxt(TRACES / "vidur_splitwise_conv.rows_1-2000.csv", delimiter=",", skiprows=1)
    assert np.abs(copy[:, 0] - [row.arrival_s for row in rows]).max() < 0.4e-6
    assert copy[:, 1:].tolist() == [[row.prompt_tokens, row.output_tokens] for row in rows]


@pytest.mark.parametrize(
    ("name", "first", "second_s", "images"),
    [
        ("azure_llm_2024_conv.head5_tail5.csv", (1452, 3), 0.04052, 0),
        ("azure_llm_2024_code.head5_tail5.csv", (2162, 5), 0.007405, 0),
        ("azure_lmm_2025_multimodal.head5_tail5.csv", (770, 491), 5.55, 7),
    ],
)
def test_azure_2024_and_2025(name, first, second_s, images):
    rows = read_trace(EXCERPTS / name)
    assert len(rows) == 10
    assert (rows[0].prompt_tokens, rows[0].output_tokens) == first
    assert rows[1].arrival_s == pytest.approx(second_s, abs=1e-9)
    assert 6 < rows[-1].arrival_s / 86_400 < 9, "the last rows are a week after the first"
    assert sum(row.num_images > 0 for row in rows) == images


@whole
def test_nanoflow_has_lengths_but_no_arrivals():
    path = TRACES / "nanoflow_sharegpt.rows_1-2000.csv"
    with pytest.raises(TraceError, match=r"line 2: the trace has no arrivals.*expected.*arrival process"):
        read_trace(path)
    rows = read_trace(path, options=ANY_TIME)
    assert percentiles([row.prompt_tokens for row in rows]) == pytest.approx(
        [343.7, 39, 1087.4, 3440, 27474], abs=0.051
    )
    spec = WorkloadSpec(name="t", arrivals="poisson", rate_per_s=2.0, trace_file=path)
    workload = build(spec, RandomPrompts(99), 2048)
    assert len(workload.requests) == 2000 and workload.rate_per_s == 2.0
    with pytest.raises(TraceError, match="no arrivals"):
        build(WorkloadSpec(name="t", arrivals="trace", trace_file=path), RandomPrompts(99), 2048)


# Azure CSV by hand


@pytest.mark.parametrize(
    ("first", "second", "seconds"),
    [
        ("2024-05-12 00:00:00+00:00", "2024-05-12 00:00:00.5+00:00", 0.5),
        ("2024-05-12 00:00:00+00:00", "2024-05-12 01:00:01+01:00", 1.0),
        ("2023-12-31 23:59:59.9999999", "2024-01-01 00:00:00.0000001", 2e-7),
        ("2024-10-15T12:00:00.269Z", "2024-10-15T12:00:05.819Z", 5.55),
    ],
)
def test_azure_times(tmp_path, first, second, seconds):
    path = write(tmp_path / "t.csv", HEADER, f"{first},1,1", f"{second},1,1")
    assert read_trace(path)[1].arrival_s == pytest.approx(seconds, abs=1e-12)


@given(ticks=st.lists(st.integers(0, 10**10), min_size=1, max_size=20), end=st.sampled_from(["\n", "\r\n"]))
def test_azure_round_trip(tmp_path_factory, ticks, end):
    path = tmp_path_factory.mktemp("azure") / "t.csv"
    seconds = [divmod(tick, 10**7) for tick in ticks]
    times = [f"2023-11-16 {s // 3600:02}:{s // 60 % 60:02}:{s % 60:02}.{f:07}" for s, f in seconds]
    rows = read_trace(write(path, HEADER, *(f"{time},{i},7" for i, time in enumerate(times)), end=end))
    assert [round(row.arrival_s * 1e7) for row in rows] == [tick - ticks[0] for tick in ticks]
    assert [row.prompt_tokens for row in rows] == list(range(len(ticks)))


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("2023-11-16 18:17:03.9799600,4808", "2 fields; expected 3: TIMESTAMP,ContextTokens"),
        ("yesterday,4808,10", "TIMESTAMP is 'yesterday'; expected a time like"),
        ("2023-13-16 18:17:03,4808,10", "TIMESTAMP is '2023-13-16 18:17:03'"),
        ("2023-11-16 18:17:03,,10", "ContextTokens is ''; expected a whole number"),
        ("2023-11-16 18:17:03,12,-3", "GeneratedTokens is '-3'"),
        ("2023-11-16 18:17:03,12.5,3", "ContextTokens is '12.5'"),
        ("XXX,12,3", "no arrivals"),
        ('"2023-11-16 18:17:03,12,3', "TIMESTAMP is"),
    ],
)
def test_a_broken_azure_row_is_named(tmp_path, bad, problem):
    path = write(tmp_path / "t.csv", HEADER, ROW, "", bad, ROW, end="\r\n")
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 4: ") and problem in message and "\n" not in message
    assert caught.value.line == 4
    assert len(read_trace(path, limit=1)) == 1, "rows behind the slice are not looked at"


def test_azure_columns_are_found_by_name(tmp_path):
    path = write(
        tmp_path / "t.csv", "GeneratedTokens,Extra,TIMESTAMP,ContextTokens", "3,x,2024-01-01 00:00:00,9"
    )
    assert [(row.prompt_tokens, row.output_tokens) for row in read_trace(path)] == [(9, 3)]
    missing = write(tmp_path / "m.csv", "TIMESTAMP,ContextTokens", "2024-01-01 00:00:00,9")
    with pytest.raises(TraceError, match="line 1: no column 'GeneratedTokens'"):
        read_trace(missing, "azure")


def test_last_line_without_an_end_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(f"\ufeff{HEADER}\r\n{ROW}\r\n{ROW}".encode())
    assert len(read_trace(path)) == 2


# Our JSONL

LINE = {"arrival_s": 1.5, "prompt_tokens": 12, "output_tokens": 3}


def test_jsonl_fields(tmp_path):
    full = {
        "timestamp_ms": 2500, "prompt": [5, 6], "max_tokens": 9, "cancel_at_s": 4.0,
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 11, "ignore_eos": True,
    }  # fmt: skip
    path = write(
        tmp_path / "t.jsonl", json.dumps(LINE), "", json.dumps(full), json.dumps(LINE | {"top_k": 1})
    )
    plain, rich, seeded = read_trace(path)
    assert (plain.line, plain.arrival_s, plain.prompt_tokens, plain.output_tokens) == (1, 1.5, 12, 3)
    assert (plain.prompt, plain.patience_s, plain.sampling, plain.ignore_eos) == (None, None, None, None)
    assert (rich.line, rich.arrival_s, rich.prompt, rich.prompt_tokens) == (3, 2.5, (5, 6), 2)
    assert (rich.output_tokens, rich.patience_s, rich.ignore_eos) == (9, 1.5, True)
    sampling = rich.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.7, 0.9, 40, 11)
    assert seeded.sampling.seed == 4, "without a seed, that of the line: equal prompts differ"


def without(key, **values):
    return {name: value for name, value in LINE.items() if name != key} | values


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON list; expected one JSON object"),
        ({**LINE, "promt_tokens": 3}, "unknown key 'promt_tokens'; expected 'prompt_tokens'"),
        ({**LINE, "zzz": 3}, "unknown key 'zzz'; expected one of arrival_s"),
        (without("arrival_s"), "no 'arrival_s'; expected a time, or an arrival process"),
        ({**LINE, "timestamp_ms": 3}, "both 'arrival_s' and 'timestamp_ms'"),
        ({**LINE, "arrival_s": float("nan")}, "arrival_s is NaN"),
        ({**LINE, "arrival_s": -1}, "arrival_s is -1; expected a number, 0 or more"),
        ({**LINE, "arrival_s": 10**400}, "arrival_s is 1000"),
        ({**LINE, "arrival_s": "1"}, 'arrival_s is "1"'),
        (without("prompt_tokens"), "no 'prompt'; expected one of prompt, prompt_tokens, text"),
        ({**LINE, "prompt": [1]}, "both 'prompt' and 'prompt_tokens'"),
        ({**LINE, "prompt_tokens": 0}, "prompt_tokens is 0; expected a whole number, 1 or more"),
        ({**LINE, "prompt_tokens": 2.5}, "prompt_tokens is 2.5"),
        ({**LINE, "prompt_tokens": True}, "prompt_tokens is true"),
        (without("prompt_tokens", prompt="hello"), "a prompt in words is 'text'"),
        (without("prompt_tokens", prompt=[]), "prompt is []; expected a list of token ids"),
        (without("prompt_tokens", prompt=[1, -2]), "prompt is [1, -2]"),
        (without("prompt_tokens", prompt=[1, 2**70]), "expected a list of token ids"),
        (without("prompt_tokens", text="hello"), "no tokenizer"),
        (without("prompt_tokens", text=""), 'text is ""'),
        (without("output_tokens"), "no 'output_tokens'"),
        ({**LINE, "max_tokens": 4}, "both 'output_tokens' and 'max_tokens'"),
        ({**LINE, "cancel_at_s": 1.0}, "cancel_at_s is 1; expected no time before the arrival at 1.5"),
        ({**LINE, "temperature": -0.1}, "temperature is -0.1"),
        ({**LINE, "top_p": 0}, "top_p is 0; expected above 0"),
        ({**LINE, "top_p": 1.1}, "top_p is 1.1"),
        ({**LINE, "top_k": -1}, "top_k is -1"),
        ({**LINE, "ignore_eos": 1}, "ignore_eos is 1; expected true or false"),
    ],
)
def test_a_broken_jsonl_line_is_named(tmp_path, line, problem):
    text = line if isinstance(line, str) else json.dumps(line)
    path = write(tmp_path / "t.jsonl", json.dumps(LINE), text, json.dumps(LINE))
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ") and problem in message and "\n" not in message


def test_jsonl_that_is_not_utf_8(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b'\n{"text": "\xff"}\n')
    with pytest.raises(TraceError, match="line 2: not JSON"):
        read_trace(path)


def test_jsonl_text_is_tokenized(tmp_path):
    path = write(tmp_path / "t.jsonl", json.dumps(without("prompt_tokens", text="héllo")))
    (row,) = read_trace(path, options=ReadOptions(tokenize=lambda text: np.arange(len(text)).tolist()))
    assert (row.prompt, row.prompt_tokens) == ((0, 1, 2, 3, 4), 5)


def test_jsonl_without_arrivals_gives_lengths(tmp_path):
    path = write(
        tmp_path / "t.jsonl", json.dumps(without("arrival_s")), json.dumps(LINE | {"cancel_at_s": 2})
    )
    first, second = read_trace(path, options=ANY_TIME)
    assert (first.arrival_s, second.arrival_s, second.patience_s) == (None, None, 0.5)


# All formats


def test_formats_are_told_apart(tmp_path):
    assert set(TRACE_FORMATS) == {"azure", "burstgpt", "jsonl", "mooncake", "servegen", "vidur"}
    assert detect_format(write(tmp_path / "a", HEADER)) == "azure"
    assert detect_format(write(tmp_path / "b", "", json.dumps(LINE))) == "jsonl"
    for text in ("", "a,b,c", '{"timestamp": 0}', "{broken"):
        with pytest.raises(TraceError, match="unknown trace format"):
            detect_format(write(tmp_path / "c", text))


def test_an_unknown_name_gets_a_suggestion(tmp_path):
    with pytest.raises(TraceError, match="unknown trace format 'azur'; expected 'azure'"):
        read_trace(write(tmp_path / "a", HEADER), "azur")


@pytest.mark.parametrize(("skip", "limit", "kept"), [(0, None, 9), (3, None, 6), (2, 4, 4), (8, 5, 1)])
def test_slices(tmp_path, skip, limit, kept):
    lines = [json.dumps(LINE | {"prompt_tokens": i + 1}) for i in range(9)]
    rows = read_trace(write(tmp_path / "t.jsonl", *lines), skip=skip, limit=limit)
    assert [row.prompt_tokens for row in rows] == list(range(skip + 1, skip + 1 + kept))


def test_an_empty_slice_is_an_error(tmp_path):
    with pytest.raises(TraceError, match="no request"):
        read_trace(write(tmp_path / "a.csv", HEADER))
    with pytest.raises(TraceError, match=r"b\.csv: no request after the first 5; expected to skip 1 at most"):
        read_trace(write(tmp_path / "b.csv", HEADER, ROW, ROW), skip=5)
    with pytest.raises(TraceError, match=r"a\.csv: no request; expected a row at least"):
        read_trace(tmp_path / "a.csv", skip=5)
    for bad in ({"skip": -1}, {"limit": 0}):
        with pytest.raises(ValueError, match="trace slice"):
            read_trace(tmp_path / "b.csv", **bad)


def test_compressed_files(tmp_path):
    path = tmp_path / "t.csv.gz"
    whole = gzip.compress("\n".join([HEADER, *[ROW] * 500]).encode())
    path.write_bytes(whole)
    assert len(read_trace(path)) == 500
    for damaged in (whole[:-20], b"no gzip at all"):
        path.write_bytes(damaged)
        with pytest.raises(TraceError, match="cannot be read"):
            read_trace(path, "azure")


def test_a_missing_file_is_an_error_of_the_trace(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(TraceError, match=r"expected a trace file$"):
            read_trace(path)
    write(tmp_path / "nine.csv", HEADER)
    with pytest.raises(TraceError, match=r"none\.csv: cannot be opened: .* such as .*/nine\.csv$"):
        read_trace(tmp_path / "none.csv", "azure")


@pytest.mark.parametrize(
    ("times", "rate"), [([], None), ([4.0], None), ([2.0, 2.0], None), ([3.0, 1.0, 5.0], 0.5)]
)
def test_mean_rate_counts_gaps(times, rate):
    assert mean_rate_per_s(times) == rate
