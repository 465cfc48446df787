"""Mooncake, Vidur, BurstGPT and ServeGen: read as published, and broken rows are named by their line."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from published import EXCERPTS, TRACES, whole

from tunebatch.workload.prompts import RandomPrompts
from tunebatch.workload.spec import WorkloadSpec, build
from tunebatch.workload.traces import ReadOptions, TraceError, detect_format, read_trace

CLIENTS = TRACES / "servegen_deepseek-r1"
ANY_TIME = ReadOptions(need_arrivals=False)


def write(path, *lines, end="\n"):
    path.write_bytes(end.join([*lines, ""]).encode())
    return path


def percentiles(values):
    return [np.mean(values), *np.percentile(values, [50, 90, 99]), max(values)]


def replay(path, context=2048, **values):
    spec = WorkloadSpec(**{"name": "t", "arrivals": "trace", "trace_file": path, **values})
    return build(spec, RandomPrompts(4096), context)


def refused(path, line, problem):
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: ") and problem in message and "\n" not in message


# The publishers' files


@whole
@pytest.mark.parametrize(
    ("name", "trace_format", "prompt", "output"),
    [
        (
            "mooncake_conversation.lines_1-2000.jsonl", "mooncake",
            [13720.9, 7965, 29449.2, 98817.4, 123192], [352.3, 363, 602.1, 1060, 2000],
        ),
        (
            "mooncake_synthetic.lines_1-1200.jsonl", "mooncake",
            [11842, 2912, 35569.3, 56639, 134773], [198.2, 173, 444.1, 778, 842],
        ),
        (
            "vidur_arxiv_summarization_4k.rows_1-2000.csv", "vidur",
            [2539.9, 2688, 3699.3, 3933, 4017], [312.6, 167, 397.1, 3284.3, 3931],
        ),
        (
            "etalon_sharegpt_8k.rows_1-2000.csv", "vidur",
            [2272.3, 1667, 5574.8, 7380.1, 8014], [463.7, 448, 863, 994, 1023],
        ),
    ],
)  # fmt: skip
def test_published_lengths(name, trace_format, prompt, output):
    assert detect_format(TRACES / name) == trace_format
    rows = read_trace(TRACES / name, options=ANY_TIME)
    assert percentiles([row.prompt_tokens for row in rows]) == pytest.approx(prompt, abs=0.051)
    assert percentiles([row.output_tokens for row in rows]) == pytest.approx(output, abs=0.051)


@whole
@pytest.mark.parametrize(
    ("name", "requests", "reused"),
    [
        ("mooncake_conversation.lines_1-2000.jsonl", 2000, 0.294),
        ("mooncake_synthetic.lines_1-1200.jsonl", 1200, 0.196),
    ],
)
def test_mooncake_reuse_survives_a_small_context(name, requests, reused):
    workload = replay(TRACES / name)
    assert len(workload.requests) == requests
    assert workload.shared_share == pytest.approx(reused, abs=0.01), "as counted from the hashes of the trace"
    assert any(
        "blocks of 512 tokens scaled to 16, and all lengths with them" in note for note in workload.notes
    )
    assert max(len(r.prompt) + r.max_tokens for r in workload.requests) <= 2048


@whole
def test_mooncake_times():
    conversation = replay(TRACES / "mooncake_conversation.lines_1-2000.jsonl")
    assert conversation.requests[-1].arrival_s == pytest.approx(669.0, abs=0.051)
    assert any("only 224 different times for 2000 requests" in note for note in conversation.notes)
    synthetic = replay(TRACES / "mooncake_synthetic.lines_1-1200.jsonl")
    assert synthetic.rate_per_s == pytest.approx(1199 / 329.2, rel=1e-3)
    assert not any("different times" in note for note in synthetic.notes)


@whole
def test_vidurs_copy_of_azure_is_the_same_workload():
    ours = replay(TRACES / "vidur_splitwise_conv.rows_1-2000.csv", 8192)
    azure = replay(TRACES / "azure_llm_2023_conv.rows_1-2000.csv", 8192)
    for one, two in zip(ours.requests, azure.requests, strict=True):
        assert (one.prompt, one.max_tokens) == (two.prompt, two.max_tokens)
        assert one.arrival_s == pytest.approx(two.arrival_s, abs=1e-6)


def test_burstgpt_drops_and_counts_what_failed():
    path = EXCERPTS / "burstgpt_1.rows_1-30.csv"
    rows = read_trace(path)
    assert len(rows) == 30 and rows[20].line == 22 and rows[20].output_tokens == 0
    workload = replay(path)
    assert len(workload.requests) == 29
    assert "1 of 30 rows was dropped for having no prompt or no output token" in workload.notes
    assert rows[-1].arrival_s - rows[0].arrival_s == 2288


@whole
@pytest.mark.parametrize(
    ("client", "rate", "prompt"), [(3, 1.07, 206), (12, 0.71, 572), (48, 1.26, 269), (54, 0.65, 362)]
)
def test_servegen_draws_the_published_traffic(client, rate, prompt):
    path = CLIENTS / f"chunk-{client}-trace.csv"
    assert detect_format(path) == "servegen"
    rows = read_trace(path)
    assert len(rows) / 86_400 == pytest.approx(rate, rel=0.03)
    assert np.median([row.prompt_tokens for row in rows]) == pytest.approx(prompt, rel=0.65)
    times = [row.arrival_s for row in rows]
    assert times == sorted(times) and rows == read_trace(path)
    assert read_trace(path, limit=9) == rows[:9]
    assert read_trace(path, limit=9, options=ReadOptions(seed=1)) != rows[:9]


@whole
def test_servegen_clients_of_a_folder_come_together():
    rows = read_trace(CLIENTS, limit=5000)
    assert detect_format(CLIENTS) == "servegen"
    alone = read_trace(CLIENTS / "chunk-12-trace.csv", limit=1)[0].arrival_s
    assert rows[-1].arrival_s < alone and all(a.arrival_s <= b.arrival_s for a, b in pairwise(rows))
    assert "arrivals and lengths were drawn" in replay(CLIENTS, num_requests=40).notes[0]


@whole
def test_every_sample_can_be_replayed():
    files = [*TRACES.glob("*.csv"), *TRACES.glob("*.jsonl"), *CLIENTS.glob("*-trace.csv")]
    assert len(files) >= 15
    for path in files:
        assert len(replay(path, arrivals="constant", rate_per_s=1.0, num_requests=20).requests) in (10, 20)


# Mooncake by hand

LINE = {"timestamp": 1500, "input_length": 1030, "output_length": 7, "hash_ids": [4, 9, 2]}


def test_mooncake_fields(tmp_path):
    rest = {key: value for key, value in LINE.items() if key != "timestamp"}
    path = write(tmp_path / "m.jsonl", json.dumps(LINE | {"chat_id": 3}), "", json.dumps(rest))
    (row,) = read_trace(path, limit=1)
    assert (row.line, row.arrival_s, row.prompt_tokens, row.output_tokens) == (1, 1.5, 1030, 7)
    assert row.hashes == (4, 9, 2) and row.prompt is None
    refused(path, 3, "no 'timestamp'; expected a time, or an arrival process")
    assert [row.arrival_s for row in read_trace(path, options=ANY_TIME)] == [None, None]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"input_length": 1024}, "3 hash_ids for 1024 tokens; expected 2, one per 512 tokens"),
        ({"hash_ids": [1, 2]}, "2 hash_ids for 1030 tokens; expected 3"),
        ({"hash_ids": []}, "hash_ids is []; expected a list of whole numbers"),
        ({"hash_ids": [1, -2, 3]}, "hash_ids is [1, -2, 3]"),
        ({"hash_ids": [1, True, 3]}, "hash_ids is [1, true, 3]"),
        ({"hash_ids": 5}, "hash_ids is 5"),
        ({"input_length": "12"}, 'input_length is "12"; expected a whole number, 0 or more'),
        ({"output_length": -1}, "output_length is -1"),
        ({"timestamp": -1}, "timestamp is -1"),
        ({"timestamp": None}, "timestamp is null"),
    ],
)
def test_a_broken_mooncake_line_is_named(tmp_path, change, problem):
    path = write(tmp_path / "m.jsonl", json.dumps(LINE), json.dumps(LINE | change), json.dumps(LINE))
    refused(path, 2, problem)
    refused(write(tmp_path / "n.jsonl", json.dumps(LINE), "{"), 2, "not JSON")
    lacking = json.dumps({key: value for key, value in LINE.items() if key != "output_length"})
    refused(write(tmp_path / "l.jsonl", json.dumps(LINE), lacking), 2, "no 'output_length'")


# Vidur and BurstGPT by hand

VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"


def test_vidur_fields(tmp_path):
    path = write(tmp_path / "v.csv", VIDUR, "0.5,12,3", "", "2.25,7,1", end="\r\n")
    assert [(r.line, r.arrival_s, r.prompt_tokens, r.output_tokens) for r in read_trace(path)] == [
        (2, 0.5, 12, 3), (4, 2.25, 7, 1),
    ]  # fmt: skip
    lengths = write(
        tmp_path / "l.csv",
        "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio",
        "74,918,992,0.08",
    )
    refused(lengths, 1, "no arrivals (no column 'arrived_at'); expected a time, or an arrival process")
    assert [(r.prompt_tokens, r.output_tokens) for r in read_trace(lengths, options=ANY_TIME)] == [(74, 918)]
    assert replay(lengths, arrivals="poisson", rate_per_s=2.0).rate_per_s == 2.0


def test_burstgpt_fields(tmp_path):
    newer = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
    rows = "5,ChatGPT,472,18,490,Conversation log", "45,GPT-4,0,0,0,API log"
    told = read_trace(write(tmp_path / "b.csv", BURSTGPT, *rows))
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in told] == [(5.0, 472, 18), (45.0, 0, 0)]
    (row,) = read_trace(write(tmp_path / "n.csv", newer, "5.5,s,3.2,GPT-4,472,18,490,API log"))
    assert (row.arrival_s, row.prompt_tokens, row.output_tokens) == (5.5, 472, 18)


@pytest.mark.parametrize(
    ("header", "good", "bad", "problem"),
    [
        (VIDUR, "0.5,12,3", "0.5,12", "2 fields; expected 3: arrived_at,num_prefill_tokens"),
        (VIDUR, "0.5,12,3", "soon,12,3", "arrived_at is 'soon'; expected a number of seconds, 0 or more"),
        (VIDUR, "0.5,12,3", "nan,12,3", "arrived_at is 'nan'"),
        (VIDUR, "0.5,12,3", "-1,12,3", "arrived_at is '-1'"),
        (VIDUR, "0.5,12,3", "1,12.5,3", "num_prefill_tokens is '12.5'; expected a whole number"),
        (VIDUR, "0.5,12,3", f"1,{'9' * 5000},3", "num_prefill_tokens is '999"),
        (BURSTGPT, "5,m,4,2,6,API log", "5,m,4,x,6,API log", "Response tokens is 'x'"),
        (BURSTGPT, "5,m,4,2,6,API log", "inf,m,4,2,6,API log", "Timestamp is 'inf'"),
    ],
)
def test_a_broken_row_is_named(tmp_path, header, good, bad, problem):
    path = write(tmp_path / "t.csv", header, good, "", bad, good)
    refused(path, 4, problem)
    assert len(read_trace(path, limit=1)) == 1


# ServeGen by hand

WINDOWS = (
    "0,0,0,,0,0",
    "600,2.0,1.0,Gamma,1.0,0.5",
    "1200,0,0,,0,0",
    "1800,1.0,3.0,Weibull,0.5,9",
    "2400,0.5,0,,0,0",
)


def client(folder, *windows, name="chunk-1", **histograms):
    kinds = {"input_tokens": "{10: 0.5, 30: 0.5}", "output_tokens": "{7: 1.0}", "reason_ratio": "{}"}
    empty = dict.fromkeys(kinds, "{}")
    dataset = {"0": empty, "1200": kinds | histograms, "99999": kinds | {"input_tokens": "{99: 1.0}"}}
    (folder / f"{name}-dataset.json").write_text(json.dumps(dataset))
    return write(folder / f"{name}-trace.csv", *windows, end="\r\n")


def test_servegen_draws_from_windows(tmp_path):
    rows = read_trace(client(tmp_path, *WINDOWS))
    times = np.array([row.arrival_s for row in rows])
    assert {row.line for row in rows} == {2, 4, 5}, "idle windows have no requests"
    assert ((times >= 600) & (times < 1200) | (times >= 1800) & (times < 3000)).all()
    for line, count in ((2, 1200), (4, 600), (5, 300)):
        assert sum(row.line == line for row in rows) == pytest.approx(count, rel=0.25), "as its rate says"
    assert {row.prompt_tokens for row in rows} == {10, 30} and {row.output_tokens for row in rows} == {7}
    gaps = np.diff(times[[row.line == 4 for row in rows]])
    assert gaps.std() / gaps.mean() > 1.6, "a Weibull law of shape 0.5 has a CV of 2.2"
    assert all(row.arrival_s is None for row in read_trace(tmp_path / "chunk-1-trace.csv", options=ANY_TIME))


def test_servegen_takes_the_next_histogram_where_none_has_begun(tmp_path):
    rows = read_trace(client(tmp_path, "0,0.01,1,Gamma,1,1", "100000,1,1,Gamma,1,1"))
    early = {row.prompt_tokens for row in rows if row.line == 1}
    assert early == {10, 30} and {row.prompt_tokens for row in rows if row.line == 2} == {99}


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("600,1.0,1.0,Gamma,1.0", "5 fields; expected 6: window start, rate"),
        ("600,fast,1.0,Gamma,1.0,1", "'fast'; expected a number, 0 or more"),
        ("600,-1,1.0,Gamma,1.0,1", "'-1'"),
        ("600,1,1.0,Pareto,1.0,1", "law 'Pareto'; expected Gamma, Weibull or nothing"),
        ("600,1,1.0,Gamma,0,1", "shape 0 of a Gamma law; expected 0.01 or more"),
        ("0,1,1.0,Gamma,1,1", "the window starts at 0; expected ascending starts"),
    ],
)
def test_a_broken_window_is_named(tmp_path, bad, problem):
    refused(client(tmp_path, WINDOWS[0], bad), 2, problem)


@pytest.mark.parametrize(
    "text", ["{10: ", "[1]", "__import__('os')", "{'a': 1}", "{-3: 1.0}", "{3: -1.0}", "{}", "{1: 1e999}"]
)
def test_a_broken_histogram_is_told_with_its_file(tmp_path, text):
    path = client(tmp_path, *WINDOWS, input_tokens=text)
    dataset = json.loads((tmp_path / "chunk-1-dataset.json").read_text())
    del dataset["99999"]
    (tmp_path / "chunk-1-dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(
        TraceError,
        match=r"chunk-1-dataset\.json: no (histograms of window '\S+': |data in any histogram)",
    ) as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)


def test_a_client_needs_both_files(tmp_path):
    path = write(tmp_path / "chunk-1-trace.csv", *WINDOWS)
    with pytest.raises(TraceError, match=r"no chunk-1-dataset\.json beside it"):
        read_trace(path)
    other = write(tmp_path / "windows.csv", *WINDOWS)
    with pytest.raises(TraceError, match=r"expected a client's \*-trace\.csv and \*-dataset\.json"):
        read_trace(other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TraceError, match="no client in this folder"):
        read_trace(tmp_path / "empty", "servegen")
    client(tmp_path, *WINDOWS)
    client(tmp_path, *WINDOWS, name="chunk-2")
    other.unlink()
    both = read_trace(tmp_path)
    assert len(both) == pytest.approx(2 * len(read_trace(path)), rel=0.1)
    assert [row.arrival_s for row in both] == sorted(row.arrival_s for row in both)
