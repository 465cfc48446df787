"""The report of the claims: complete or said to be in part, and readable by people and programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import claims
import pytest
from claimed.claim import Figure, Finding, Judged, Table
from claimed.page import in_short, machine_folder, to_json_dict, to_markdown

FACTS: dict[str, Any] = {
    **dict.fromkeys(("tunebatch", "python", "torch", "transformers", "numpy", "numba"), "1.0"),
    "cpu": "A CPU",
    "cores": 2,
    "memory_bytes": 2**33,
    "platform": "Linux",
    "date": "today",
    "commit": None,
    "model": "bundled",
    "same_tokens": "greedy tokens",
    "rounds": 2,
    "seconds": 12.3,
}


def finding(claim: Any, value: float = 100.0) -> Finding:
    figures = {check.figure: Figure((value, value)) for check in claim.checks}
    return Finding("64 requests", figures, "it is so", (Table("A curve", "x | y", ["1 | 2", "3 | 4"]),))


def all_judged() -> list[Judged]:
    return [
        Judged(place, one, finding(one), foreign_cpu_share=place / 100)
        for place, one in claims.CLAIMS.items()
    ]


def test_every_claim_has_a_row_and_a_section_with_its_tables() -> None:
    text = to_markdown(all_judged(), [], FACTS)
    for place, claim in claims.CLAIMS.items():
        assert f"\n| {place}. [{claim.text}](#{claim.name}) | 64 requests | " in text
        assert f"\n## {claim.name}\n\n{claim.text} **" in text
    assert text.count("A curve:\n\n| x | y |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |") == 9
    assert "A CPU, 2 cores, 8 GiB" in text
    assert "others used 9 % of the cores at most" in text
    assert "Not run" not in text


def test_rows_of_a_table_have_as_many_cells_as_its_header() -> None:
    lines = to_markdown(all_judged(), [], FACTS).splitlines()
    widths = {line.count(" | ") for line in lines if line.startswith("| ") and "claim |" not in line}
    tables = "\n".join(lines).split("\n\n")
    for table in (one.splitlines() for one in tables if one.startswith("|")):
        assert len({line.count("|") for line in table}) == 1, table[0]
    assert widths == {1, 4}


def test_a_report_in_part_says_what_was_not_run() -> None:
    text = to_markdown(all_judged()[:2], ["3. Third.", "4. Fourth."], FACTS)
    assert "**Not run: 3. Third. 4. Fourth.**" in text


def test_a_verdict_that_a_round_would_turn_says_so() -> None:
    claim = claims.CLAIMS[8]
    figures = {check.figure: Figure((3.0, 4.0)) for check in claim.checks}
    one = Judged(8, claim, Finding("on", figures, "why"))
    assert in_short(one)[0] == "sequences at once 3.50x [3.00x, 4.00x]"
    text = to_markdown([one], [], FACTS)
    assert "| holds (rounds disagree) | why |" in text
    assert "| 3.50x to 4.50x | at least 2.00x | holds (rounds disagree) |" in text


def test_programs_get_every_number_under_a_versioned_schema() -> None:
    data = json.loads(json.dumps(to_json_dict(all_judged(), ["x"], FACTS), allow_nan=False))
    assert data["schema"] == "tunebatch.claims.v1"
    assert data["not_run"] == ["x"]
    assert list(data["claims"]) == [claim.name for claim in claims.CLAIMS.values()]
    heads = data["claims"]["heads"]
    assert heads["verdict"] == "holds, above the claimed range"
    assert heads["figures"]["sequences at once"] == {"samples": [100.0, 100.0], "unit": "x", "median": 100.0}
    assert heads["tables"] == [{"title": "A curve", "rows": [["x", "y"], ["1", "2"], ["3", "4"]]}]


def test_results_lie_in_a_folder_of_the_machine() -> None:
    assert machine_folder({"cores": 2, "gpu": "NVIDIA H100"}, "cpu") == "cpu-2core"
    assert machine_folder({"cores": 2, "gpu": "NVIDIA H100"}, "cuda") == "nvidia-h100"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs the claims with a measurement that costs nothing; it is ended in the claim of that number."""

    def main(*arguments: str, ended_in: int = 0, by: type[BaseException] = KeyboardInterrupt) -> int:
        executor = SimpleNamespace(device=SimpleNamespace(type="cpu"))
        bench = SimpleNamespace(executor=executor, foreign_cpu_shares=[])
        monkeypatch.setattr(claims, "_begin", lambda _: (bench, dict(FACTS)))

        def measured(place: int, _: Any) -> Judged:
            if place == ended_in:
                raise by
            return all_judged()[place - 1]

        monkeypatch.setattr(claims, "_measured", measured)
        return claims.main([*arguments, "--out", str(tmp_path)])

    return main


def test_all_claims_make_the_report(run: Callable[..., int], tmp_path: Path) -> None:
    assert run() == 0
    assert sorted(path.name for path in (tmp_path / "cpu-2core").iterdir()) == ["claims.json", "claims.md"]


@pytest.mark.parametrize(("arguments", "ended_in", "code"), [(["--only", "1,3"], 0, 0), ([], 3, 130)])
def test_a_part_does_not_take_the_place_of_the_whole(
    run: Callable[..., int], tmp_path: Path, arguments: list[str], ended_in: int, code: int
) -> None:
    run()
    whole = (tmp_path / "cpu-2core/claims.md").read_text()
    assert run(*arguments, ended_in=ended_in) == code
    part = (tmp_path / "cpu-2core/claims-partial.md").read_text()
    assert part.count("\n## ") == 2
    assert f"Not run: {3 if ended_in else 2}. " in part
    assert json.loads((tmp_path / "cpu-2core/claims-partial.json").read_text())["not_run"]
    assert (tmp_path / "cpu-2core/claims.md").read_text() == whole


def test_what_was_measured_before_an_error_is_kept(run: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(ended_in=2, by=ZeroDivisionError)
    assert (tmp_path / "cpu-2core/claims-partial.md").read_text().count("\n## ") == 1


def test_nothing_measured_is_nothing_written(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ended_in=1) == 130
    assert list(tmp_path.iterdir()) == []
    assert "nothing was written" in capsys.readouterr().err
