"""Random weights on the command line: said everywhere, speculating only by an acceptance that was given."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tunebatch.cli.tokenizer import TokenizerError, text_to_ids
from tunebatch.profile import load_profile

SHAPE = ["--model", "llama-8m"]
QUICK = ["--objective", "throughput", "--slo", "p90_ttft<=1min", "--trials", "2"]
REFUSED = {
    "speculation": (["run", "continuous+ngram", *SHAPE], ["llama-8m (random weights)", "--acceptance 0.7"]),
    "compared speculation": (
        ["compare", *SHAPE, "--strategy", "static", "--strategy", "mixed+draft", "--draft", "llama-8m"],
        ["mixed+draft: llama-8m", "--acceptance 0.7"],
    ),
    "swept speculation": (["sweep", *SHAPE, "--strategy", "mixed+ngram"], ["mixed+ngram: llama-8m"]),
    "a searched drafter": (["sweep", *SHAPE, "--features", "prefix,ngram"], ["ngram: llama-8m"]),
    "an acceptance of real weights": (
        ["run", "continuous+ngram", "--acceptance", "0.7"],
        ["--acceptance: bundled has real weights", "llama-32m"],
    ),
    "a random draft of real weights": (["run", "--draft", "llama-8m"], ["--draft llama-8m", "never guess"]),
    "no draft": (
        ["run", "continuous+draft", "--acceptance", "0.7", "--model", "qwen3-8b"],
        ["needs a draft model with the vocabulary of qwen3-8b", "--draft, such as qwen2.5-0.5b"],
    ),
    "no other shape of its vocabulary": (
        ["run", "continuous+draft", "--acceptance", "0.7", *SHAPE],
        ["such as llama-8m:2-layers"],
    ),
    "another vocabulary": (
        ["run", *SHAPE, "--draft", "gpt2"],
        ["--draft gpt2: a vocabulary of 50257 tokens, llama-8m has 4096"],
    ),
    "more than certain": (
        ["run", *SHAPE, "--acceptance", "1.5"],
        ["--acceptance 1.5: 1.5 is no probability", "nearest is 1"],
    ),
    "less than never": (
        ["run", *SHAPE, "--acceptance", "0.5,-1"],
        ["-1 is no probability; the nearest is 0"],
    ),
    "no rate": (["run", *SHAPE, "--acceptance", "often"], ["--acceptance often: is no rate", "like 0.8"]),
    "an empty place": (["run", *SHAPE, "--acceptance", "0.5,"], ["is no rate"]),
    "not a number": (["run", *SHAPE, "--acceptance", "nan"], ["nan is no probability"]),
    "layers": (["run", "--model", "llama-8m:9-layers"], ["has 6 layers", "llama-8m:6-layers"]),
    "saved results": (["compare", "a", "b", "--acceptance", "0.5"], ["--acceptance measures anew"]),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_one_line_before_anything_is_loaded(
    tunebatch: Any, fake_model: list[str], case: tuple[list[str], list[str]]
) -> None:
    arguments, told = case
    done = tunebatch(*arguments)
    lines = done.err.splitlines()
    assert done.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), done
    assert all(part in lines[0] for part in told), lines
    assert fake_model == []


def test_every_number_of_drawn_acceptances_says_so(tunebatch: Any) -> None:
    call = ["--strategy", "continuous", "--strategy", "continuous+ngram", "--acceptance", "0.8,0.6"]
    done = tunebatch("compare", *SHAPE, *call, "-n", "20", "-o", "here")
    assert done.code == 0, done.err
    assert "random weights: lengths are those asked for" in done.err
    assert "synthetic acceptance 0.8,0.6: drafts are made and verified" in done.err
    assert "drafts were accepted by tokens here" in done.err
    about = [line for line in done.out.splitlines() if "+ngram" in line]
    assert len(about) >= 4 and all("continuous+ngram (synthetic acceptance)" in line for line in about), about
    assert "synthetic acceptance 0.8,0.6, drawn and not measured" in done.out
    kept = json.loads(Path("here/continuous+ngram/result.json").read_text())["tunebatch"]
    assert kept["speculation"]["synthetic_acceptance"] == [0.8, 0.6]
    assert kept["conditions"]["synthetic_acceptance"] is True
    # 0.8 of the first drafts, and 0.6 of those behind an accepted one, however deep the run drafts.
    accepted, drafted = (kept["speculation"][key] for key in ("accepted_at", "drafted_at"))
    assert 0.72 < accepted[0] / drafted[0] < 0.88
    assert 0.36 < accepted[1] / drafted[1] < 0.6
    plain = json.loads(Path("here/continuous/result.json").read_text())["tunebatch"]
    assert plain["speculation"] is None and plain["conditions"]["synthetic_acceptance"] is False


@pytest.mark.parametrize(
    "command",
    [
        ["run", "continuous+ngram"],
        ["compare", "--strategy", "continuous+ngram", "--strategy", "static"],
        ["sweep", "--strategy", "continuous+ngram", *QUICK],
    ],
)
def test_a_quiet_answer_says_what_was_drawn_and_scaled(tunebatch: Any, command: list[str]) -> None:
    call = [*command, *SHAPE, "--acceptance", "0.5", "-w", "summarize", "-n", "70", "-o", "here"]
    done = tunebatch(*call, "-q")
    assert done.code in (0, 6, 7), done
    lines = [line.removeprefix("note: ").strip() for line in done.out.splitlines()]
    told = ["random weights", "synthetic acceptance 0.5"]
    assert lines.index(told[0]) == lines.index(told[1]) - 1
    (scaled,) = filter(re.compile("lengths scaled by .* to fit a context of 2048 tokens$").match, lines)
    table = [line for line in lines if line.startswith("continuous+ngram")]
    assert table and all("(synthetic acceptance)" in line for line in table)
    kept = json.loads(next(Path("here").rglob("result.json")).read_text())["tunebatch"]
    assert kept["model"]["random_weights"] is True and scaled in kept["workload"]["notes"]
    if command[0] == "sweep":
        assert json.loads(Path("here/sweep.json").read_text())["notes"][:3] == [*told, scaled]


def test_saved_results_and_traces_say_what_was_drawn_and_scaled(tunebatch: Any) -> None:
    drawn = [*SHAPE, "--acceptance", "0.5", "-w", "summarize", "-n", "20"]
    for name in ("mixed+ngram", "static"):
        assert tunebatch("run", name, *drawn, "-o", name, "--trace", f"{name}.json").code in (0, 7)
    for quiet in ([], ["-q"]):
        done = tunebatch("compare", "static", "mixed+ngram", *quiet)
        assert done.code == 0 and "note: random weights\n      lengths scaled by " in done.out, done
        assert "      synthetic acceptance 0.5\n" in done.out
    events = json.loads(Path("mixed+ngram.json").read_text())["traceEvents"]
    about = {event["name"]: event["args"] for event in events if event["ph"] == "M"}
    assert about["process_labels"]["labels"].startswith(
        "random weights; synthetic acceptance 0.5; lengths scaled by "
    )
    assert any("mixed+ngram (synthetic acceptance)" in str(event["args"]) for event in events[:3])


def test_measured_acceptance_is_not_called_synthetic(tunebatch: Any) -> None:
    done = tunebatch("run", "continuous+ngram", "-n", "20")
    assert done.code == 0, done.err
    assert "synthetic" not in done.out + done.err and "random weights" not in done.out + done.err


def test_a_run_says_under_which_acceptance_and_can_be_repeated(tunebatch: Any) -> None:
    call = ["run", "mixed+ngram", *SHAPE, "--acceptance", "0.5", "-n", "20", "--json"]
    first, again = (json.loads(tunebatch(*call).out) for _ in range(2))
    assert first["tunebatch"]["metrics"] == again["tunebatch"]["metrics"]
    other = json.loads(tunebatch(*call, "--seed", "9").out)
    assert first["tunebatch"]["metrics"] != other["tunebatch"]["metrics"]


def test_results_of_other_acceptances_are_not_compared(tunebatch: Any) -> None:
    for rate in ("0.5", "0.7"):
        call = ["run", "mixed+ngram", *SHAPE, "--acceptance", rate, "-n", "20", "-o", f"at-{rate}"]
        assert tunebatch(*call).code == 0
    assert tunebatch("run", "mixed", *SHAPE, "-n", "20", "-o", "plain").code == 0
    done = tunebatch("compare", "at-0.5", "at-0.7")
    assert done.code == 5 and "synthetic acceptance 0.5 and 0.7" in done.err
    done = tunebatch("compare", "at-0.5", "plain")
    assert done.code == 0 and "mixed+ngram (synthetic acceptance)" in done.out


def test_a_sweep_goes_on_with_its_acceptance_only(tunebatch: Any) -> None:
    call = ["sweep", *SHAPE, "--acceptance", "0.7", "--strategy", "continuous+ngram", *QUICK, "-o", "here"]
    done = tunebatch(*call)
    assert done.code == 0, done.err
    told = done.out.splitlines()[0]
    assert told.startswith("continuous+ngram (synthetic acceptance), max_batch_size"), told
    kept = json.loads(Path("here/sweep.json").read_text())
    assert kept["synthetic_acceptance"] == [0.7] and "(synthetic acceptance)" in kept["headline"]
    assert "--acceptance 0.7" in done.err and "--model llama-8m" in done.err
    assert tunebatch("sweep", "--resume", "here", "--trials", "3").code == 0
    done = tunebatch("sweep", "--resume", "here", "--acceptance", "0.8")
    assert done.code == 2 and "here holds a sweep with " in done.err


def test_prompts_keep_to_words_and_a_shape_has_no_tokenizer(tunebatch: Any) -> None:
    with pytest.raises(
        TokenizerError, match="llama-8m is a shape with random weights, which has no tokenizer"
    ):
        text_to_ids("llama-8m")("words")


@pytest.mark.parametrize("given", ["0.8,0.6", [0.8, 0.6], ["0.8", 0.6]])
def test_rates_in_a_profile(given: Any) -> None:
    assert load_profile(None, {"model": {"acceptance": given}}, {}).model.acceptance == (0.8, 0.6)
    assert load_profile(None, {"model": {"acceptance": 1}}, {}).model.acceptance == (1.0,)
    assert load_profile(None, None, {"TUNEBATCH_MODEL_ACCEPTANCE": "0.25"}).model.acceptance == (0.25,)
    assert load_profile(None, None, {}).model.acceptance == ()


@pytest.mark.parametrize(("room", "state"), [(2**34, "ok"), (2**28, "warning")])
def test_the_doctor_says_whether_a_model_fits(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch, room: int, state: str
) -> None:
    from tunebatch.execute.torch import room as rooms

    monkeypatch.setattr(rooms, "room_bytes", lambda device, utilization: room)
    done = tunebatch("doctor", "--model", "llama-3.2-1b", "--json")
    found = next(one for one in json.loads(done.out)["checks"] if one["what"] == "model")
    assert found["state"] == state and "llama-3.2-1b (random weights) in" in found["found"]
    assert ("the nearest that fits is" in found["found"]) == (state == "warning")
