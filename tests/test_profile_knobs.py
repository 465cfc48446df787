"""Ranges of knobs in a profile: what they may be, and what is refused how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunebatch.profile import ProfileError, load_profile
from tunebatch.profile_knobs import parse_ranges, range_text

GIVEN: list[tuple[Any, str, tuple[float, float]]] = [
    ("4-128", "max_batch_size", (4, 128)),
    (" 4 - 128 ", "max_batch_size", (4, 128)),
    (16, "max_batch_size", (16, 16)),
    ("16", "max_batch_size", (16, 16)),
    ("10ms-0.5s", "max_delay_s", (0.01, 0.5)),
    ("1e-2-0.5", "max_delay_s", (0.01, 0.5)),
    (0.25, "max_delay_s", (0.25, 0.25)),
    ("auto", "chunk_size", (0, 0)),
    ("0.6-0.8", "target", (0.6, 0.8)),
]


@pytest.mark.parametrize(("given", "name", "ends"), GIVEN)
def test_a_range_is_read_and_reads_back_as_it_is_shown(
    given: Any, name: str, ends: tuple[float, float]
) -> None:
    assert parse_ranges({name: given}) == {name: ends}
    assert parse_ranges([f"{name}={given}"]) == {name: ends} == parse_ranges(f"{name}={given}")
    assert parse_ranges({name: range_text(name, *ends)}) == {name: ends}


def test_flag_beats_environment_beats_the_files_table(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[search]\nsampler = "tpe"\n[search.knobs]\nmax_batch_size = "4-32"\nchunk_size = 512\n')
    search = load_profile(path, environ={}).search
    assert search.knobs == {"max_batch_size": (4, 32), "chunk_size": (512, 512)} and search.sampler == "tpe"
    environ = {
        "TUNEBATCH_SEARCH_KNOBS": "max_batch_size=8-16,num_drafts=2",
        "TUNEBATCH_SEARCH_FEATURES": "ngram",
    }
    assert load_profile(path, environ=environ).search.knobs == {
        "max_batch_size": (8, 16),
        "num_drafts": (2, 2),
    }
    flags = {"search": {"knobs": ["max_batch_size=9"], "sampler": "gp"}}
    search = load_profile(path, flags, environ).search
    assert search.knobs == {"max_batch_size": (9, 9)} and search.sampler == "gp"


def test_other_strategies_by_a_flag_leave_a_range_of_the_file_without_use(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("[search.knobs]\nchunk_size = 512\n")
    flags: dict[str, Any] = {"search": {"strategies": ["static"]}}
    assert load_profile(path, flags, {}).search.knobs
    flags["search"]["knobs"] = ["chunk_size=512"]
    with pytest.raises(ProfileError, match=r"^--knob chunk_size = '512': nothing searched has it"):
        load_profile(path, flags, {})


REFUSED: list[tuple[str, str]] = [
    (
        'max_batch = "4-8"',
        "max_batch = '4-8': unknown knob 'max_batch'; did you mean 'max_batch_size'? (one of ",
    ),
    ('max_delay = "50ms"', "max_delay = '50ms': unknown knob 'max_delay'; did you mean 'max_delay_s'?"),
    (
        'max_batch_size = "32-4"',
        "max_batch_size = '32-4': its low end 32 is above its high end 4; did you mean '4-32'?",
    ),
    ('max_batch_size = "0-8"', "max_batch_size = 0: the least possible value is 1 (sequences)"),
    ('max_batch_size = "1.5-8"', "max_batch_size = 1.5: must be a whole number, nearest is 2"),
    ('max_batch_size = "4-many"', "'many' is not a number; write it like '1-64'"),
    ('max_batch_size = "auto"', "'auto' is not a number; write it like '1-64'"),
    ("max_batch_size = [4, 32]", "max_batch_size = [4, 32]: no range; write it like '1-64'"),
    ("max_batch_size = true", "max_batch_size = True: no range; write it like '1-64'"),
    (
        'max_batch_size = "4-128"',
        "max_batch_size = '4-128': there are 64 batch slots; the nearest is '4-64', or for more, "
        "[device] max_slots = 128",
    ),
    (
        'max_batch_size = "4-32"\nmin_batch_size = "8-16"',
        "min_batch_size = '8-16': must not exceed max_batch_size, which begins at 4; the nearest is '4-16', "
        "or max_batch_size = '8-32'",
    ),
    ('max_delay_s = "50mz"', "unknown unit 'mz'; did you mean 50ms?"),
    ('num_drafts = "0-4"', "num_drafts = 0: the least possible value is 1"),
    ("num_drafts = 4", "num_drafts = '4': nothing searched has it; did you mean "),
]


@pytest.mark.parametrize(("text", "told"), REFUSED)
def test_a_refusal_names_file_knob_value_and_the_nearest(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(f"[search.knobs]\n{text}\n")
    with pytest.raises(ProfileError) as error:
        load_profile(path, environ={})
    assert str(error.value).startswith(f"{path}: [search.knobs] ") and told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_presets_own_knobs_are_not_searched(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[search]\nstrategies = ["sarathi"]\nknobs = {chunk_size = 512}\n')
    with pytest.raises(ProfileError, match="chunk_size = '512': nothing searched has it; there are no knobs"):
        load_profile(path, environ={})


def test_a_sampler_that_there_is_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[search]\nsampler = "gpp"\n')
    with pytest.raises(ProfileError, match=r"sampler = 'gpp': unknown value; did you mean 'gp'?"):
        load_profile(path, environ={})


def test_a_flag_without_a_range_and_a_knob_given_twice() -> None:
    with pytest.raises(ProfileError, match=r"^--knob 'max_batch_size' has no '='; write it like"):
        load_profile("smoke", {"search": {"knobs": ["max_batch_size"]}}, {})
    with pytest.raises(ProfileError, match=r"^--knob max_batch_size is given twice; keep one of '2' and '3'"):
        load_profile("smoke", {"search": {"knobs": ["max_batch_size=2", "max_batch_size=3"]}}, {})
