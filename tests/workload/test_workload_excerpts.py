"""Every format as its publisher wrote it: the first rows of the real files."""

from __future__ import annotations

import numpy as np
import pytest
from published import EXCERPTS

from tunebatch.workload.prompts import RandomPrompts
from tunebatch.workload.spec import WorkloadSpec, build
from tunebatch.workload.traces import (
    TRACE_FORMATS,
    ReadOptions,
    TraceError,
    detect_format,
    has_arrivals,
    read_trace,
)

ANY_TIME = ReadOptions(need_arrivals=False)
CLIENT = EXCERPTS / "servegen_deepseek-r1" / "chunk-54-trace.csv"

# Format, rows, prompt and output tokens of the first and the last, all prompt and all output tokens, and
# seconds from the first to the last arrival; None where there are none.
READ = {
    "azure_llm_2023_code.rows_1-40.csv": ("azure", 40, (4808, 10), (3351, 9), 105353, 902, 34.284439),
    "azure_llm_2023_conv.rows_1-40.csv": ("azure", 40, (374, 44), (28, 175), 27985, 4430, 24.146296),
    "azure_llm_2024_code.head5_tail5.csv": ("azure", 10, (2162, 5), (4725, 8), 24016, 180, 604799.919571),
    "azure_llm_2024_conv.head5_tail5.csv": ("azure", 10, (1452, 3), (2688, 366), 12767, 856, 604799.994297),
    "azure_lmm_2025_multimodal.head5_tail5.csv": (
        "azure", 10, (770, 491), (841, 63), 12859, 1395, 604799.695,
    ),
    "burstgpt_1.rows_1-30.csv": ("burstgpt", 30, (472, 18), (507, 448), 17722, 10280, 2288.0),
    "etalon_sharegpt_8k.rows_1-20.csv": ("vidur", 20, (74, 918), (1560, 79), 50539, 12232, None),
    "mooncake_conversation.lines_1-20.jsonl": ("mooncake", 20, (6758, 500), (16609, 349), 289844, 7832, 3.0),
    "mooncake_synthetic.lines_1-20.jsonl": ("mooncake", 20, (40160, 6), (13492, 16), 391904, 3367, 4.84),
    "nanoflow_sharegpt.rows_1-40.csv": ("azure", 40, (42, 285), (12, 83), 20270, 12338, None),
    "vidur_arxiv_summarization_4k.rows_1-20.csv": (
        "vidur", 20, (3772, 54), (3525, 318), 59430, 3933, None,
    ),
    "vidur_splitwise_conv.rows_1-40.csv": ("vidur", 40, (374, 44), (28, 175), 27985, 4430, 24.146296),
}  # fmt: skip


def replay(name, context=8192, **values):
    spec = WorkloadSpec(**{"name": "t", "arrivals": "trace", "trace_file": EXCERPTS / name, **values})
    return build(spec, RandomPrompts(4096), context)


@pytest.mark.parametrize("name", READ)
def test_an_excerpt_is_read_as_published(name):
    trace_format, count, first, last, prompts, outputs, span_s = READ[name]
    path = EXCERPTS / name
    assert detect_format(path) == trace_format and has_arrivals(path) is (span_s is not None)
    rows = read_trace(path, options=ANY_TIME)
    told = [(row.prompt_tokens, row.output_tokens) for row in rows]
    assert (len(told), told[0], told[-1]) == (count, first, last)
    assert np.sum(told, axis=0).tolist() == [prompts, outputs]
    if span_s is None:
        with pytest.raises(TraceError, match="no arrivals"):
            read_trace(path)
        assert replay(name, arrivals="poisson", rate_per_s=2.0).rate_per_s == 2.0
    else:
        times = [row.arrival_s for row in read_trace(path)]
        assert times[-1] - times[0] == pytest.approx(span_s, abs=1e-9)


def test_no_excerpt_and_no_format_of_others_is_left_out():
    files = {path.name for path in [*EXCERPTS.glob("*.csv"), *EXCERPTS.glob("*.jsonl")]}
    assert files == READ.keys()
    assert {told[0] for told in READ.values()} | {"servegen", "jsonl"} == set(TRACE_FORMATS)
    said = (EXCERPTS / "README.md").read_text()
    assert all(name in said for name in READ)


def test_vidurs_copy_of_azure_is_the_same_workload():
    ours, azure = replay("vidur_splitwise_conv.rows_1-40.csv"), replay("azure_llm_2023_conv.rows_1-40.csv")
    for one, two in zip(ours.requests, azure.requests, strict=True):
        assert (one.prompt, one.max_tokens) == (two.prompt, two.max_tokens)
        assert one.arrival_s == pytest.approx(two.arrival_s, abs=1e-6)


def test_mooncake_blocks_are_shared():
    """All but one conversation begin with the same block of 512 tokens, and the lengths are scaled alike."""
    name = "mooncake_conversation.lines_1-20.jsonl"
    hashes = [row.hashes for row in read_trace(EXCERPTS / name)]
    first = sum(one[0] == hashes[0][0] for one in hashes)
    workload = replay(name, 2048)
    begun = [request.prompt[:16] for request in workload.requests]
    assert begun.count(begun[0]) == first >= 15
    assert any("blocks of 512 tokens scaled to 16" in note for note in workload.notes)


def test_servegen_draws_from_the_windows_of_a_client():
    rows = read_trace(CLIENT)
    times = [row.arrival_s for row in rows]
    windows = [line.split(",") for line in CLIENT.read_text().split()]
    expected = sum(600 * float(rate) for _, rate, *_ in windows)
    assert detect_format(CLIENT) == detect_format(CLIENT.parent) == "servegen"
    assert times == sorted(times) and 0.5 < len(rows) / expected < 2.0
    assert {float(windows[row.line - 1][1]) > 0 for row in rows} == {True}, "of windows with traffic only"
    assert read_trace(CLIENT, limit=9, options=ReadOptions(seed=1)) != rows[:9] == read_trace(CLIENT, limit=9)
