"""Named workloads and a profile's traffic keys on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunebatch.cli.traffic import workload_spec
from tunebatch.profile import ProfileError, load_profile
from tunebatch.workload.lengths import Fixed, Uniform


@pytest.mark.parametrize("name", ["system-prompt", "rag", "agents", "multi-turn", "long-prompt"])
@pytest.mark.parametrize("rate", [None, "9"])
def test_a_named_workload_is_served_and_its_sharing_told(tunebatch: Any, name: str, rate: str | None) -> None:
    paced = [] if rate is None else ["--rate", rate]
    done = tunebatch("run", "mixed", "-w", name, "-n", "40", *paced, "-o", "here")
    assert done.code == 0, done.err
    assert f"workload: {name}: 40 requests" in done.err
    kept = json.loads(Path("here/result.json").read_text())
    assert kept["completed"] == 40
    shared = "no prompt tokens shared" if name == "long-prompt" else "of prompt tokens shared with an earlier"
    assert shared in kept["tunebatch"]["workload"]["description"]


def test_later_turns_are_measured_from_the_time_they_are_due(tunebatch: Any) -> None:
    done = tunebatch("run", "-w", "multi-turn", "-n", "30", "--rate", "5", "-o", "here")
    assert done.code == 0 and "conversations of" in done.out
    rows = Path("here/requests.csv").read_text().splitlines()
    arrivals = [float(row.split(",")[rows[0].split(",").index("arrival_s")]) for row in rows[1:]]
    assert len(set(arrivals)) == 30, "turns come one after another, not with the start of their conversation"


def test_a_capacity_of_conversations_is_searched(tunebatch: Any) -> None:
    limits = ["--slo", "p90_ttft<=150ms", "--slo", "p90_tpot<=50ms"]
    call = ["-w", "multi-turn", "-n", "80", *limits, "--strategy", "continuous", "--trials", "1"]
    done = tunebatch("sweep", *call, "-o", "here")
    assert done.code == 0, done.err
    assert "req/s inside the SLO" in done.out


def test_a_run_of_conversations_lasts_until_its_load_has_built_up(tunebatch: Any) -> None:
    call = ["--slo", "p90_ttft<=150ms", "--strategy", "continuous", "-n", "400", "--dry-run", "--json"]
    least_s = {}
    for name in ("multi-turn", "chat"):
        done = tunebatch("sweep", "-w", name, *call)
        assert done.code == 0, done.err
        least_s[name] = json.loads(done.out)["least_run_s"]
    assert least_s["chat"] < 10
    assert least_s["multi-turn"] == pytest.approx(4 * 3 * 2, rel=0.25), (
        "four times three pauses of two seconds"
    )


def test_clients_that_hang_up_by_the_profile(tunebatch: Any) -> None:
    Path("mine.toml").write_text(
        '[workload]\nname = "quickstart"\nrequests = 60\ncancel = 0.5\ncancel_after_s = 0.3\n'
    )
    done = tunebatch("run", "sequential", "-p", "mine.toml", "-o", "here")
    assert done.code == 0 and "50 % of clients hang up 0.3 s after arrival on average" in done.err
    assert "caution: clients hung up" in done.out


def test_traffic_keys_of_a_profile_reach_the_description(tmp_path: Path) -> None:
    keys = (
        'name = "chat"\nprefix_tokens = 64\nprefixes = 5\nprefix_skew = 0.5\nturns = "uniform:2-4"\n'
        "think_time_s = 1.5\ncancel = 0.1\ncancel_after_s = 4.0\n"
    )
    (tmp_path / "p.toml").write_text(f"[workload]\n{keys}")
    spec = workload_spec(load_profile(tmp_path / "p.toml", environ={}))
    assert (spec.prefix_lengths, spec.num_prefixes, spec.prefix_skew) == (Fixed(64), 5, 0.5)
    assert (spec.turns, spec.think_time_s) == (Uniform(2, 4), 1.5)
    assert (spec.cancel, spec.cancel_after_s) == (0.1, 4.0)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("cancel = 1.5", "[workload] cancel = 1.5: impossible; the nearest valid value is 1"),
        ("cancel = true", "true is not a number"),
        ("prefixes = 0", "the nearest valid value is 1"),
        ("prefix_skew = 11", "the nearest valid value is 10"),
        ("cancel_after = 3", "unknown key; did you mean 'cancel_after_s'?"),
    ],
)
def test_impossible_traffic_keys_are_refused(tmp_path: Path, key: str, said: str) -> None:
    (tmp_path / "p.toml").write_text(f"[workload]\n{key}\n")
    with pytest.raises(ProfileError) as caught:
        load_profile(tmp_path / "p.toml", environ={})
    assert said in str(caught.value)


def test_a_folder_of_clients_is_a_trace(tunebatch: Any) -> None:
    folder = Path("profiles/clients")
    folder.mkdir(parents=True)
    for name in ("chunk-1", "chunk-2"):
        (folder / f"{name}-trace.csv").write_text("0,2.0,1.0,Gamma,1.0,0.5\n")
        dataset = {"0": {"input_tokens": "{10: 1.0}", "output_tokens": "{3: 1.0}"}}
        (folder / f"{name}-dataset.json").write_text(json.dumps(dataset))
    Path("profiles/mine.toml").write_text('[workload]\ntrace_file = "clients"\nrequests = 50\n')
    for call in (["-w", "servegen", "--trace-file", str(folder), "-n", "50"], ["-p", "profiles/mine.toml"]):
        done = tunebatch("run", *call)
        assert done.code == 0, done.err
        assert "clients: 50 requests, arrivals of clients at" in done.err
