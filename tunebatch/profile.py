"""What the user asked for, as validated models: a TOML profile, the environment and flags together."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from tunebatch import profile_knobs
from tunebatch.measure.limits import METRICS, STATISTICS, Limit, Slo, SloError, parse_slo
from tunebatch.profile_errors import ProfileError, nearest, of_a_range, one_line, said
from tunebatch.profile_sections import (
    DeviceSection,
    ModelSection,
    SearchSection,
    Section,
    WorkloadSection,
)

__all__ = ["Profile", "ProfileError", "load_profile", "nearest", "profile_names"]

Values = dict[str, dict[str, Any]]


class _Sections(Section):
    model: ModelSection = Field(default_factory=ModelSection)
    workload: WorkloadSection = Field(default_factory=WorkloadSection)
    slo: dict[str, Any] = Field(default_factory=dict)
    search: SearchSection = Field(default_factory=SearchSection)
    device: DeviceSection = Field(default_factory=DeviceSection)


_SECTIONS: dict[str, type[Section] | None] = {
    "model": ModelSection,
    "workload": WorkloadSection,
    "slo": None,
    "search": SearchSection,
    "device": DeviceSection,
}
_SLO_KEYS = [f"{statistic}_{metric}" for statistic in STATISTICS for metric in METRICS]
_LENGTHS = ("prompt_tokens", "output_tokens", "prefix_tokens", "turns")
_OTHER_VARIABLES = ("TUNEBATCH_DEBUG",)  # that are not a profile's business


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that a command needs to know.

    Attributes:
        name: The file's stem.
        source: The file.
        origin: By section and key the flag or variable that beat the file.
    """

    name: str
    model: ModelSection
    workload: WorkloadSection
    slo: Slo
    search: SearchSection
    device: DeviceSection
    source: str = "defaults"
    origin: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def said(self, section: str, key: str) -> str:
        """Where a value comes from, its key and the value, as a refusal begins."""
        value = getattr(getattr(self, section), key)
        return said(self.origin.get((section, key), self.source), section, key, value)


def profile_names() -> list[str]:
    """The ready-made profiles."""
    return sorted(path.stem for path in _profiles_folder().glob("*.toml"))


def load_profile(
    path_or_name: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Profile:
    """The profile after flag > environment > file > default.

    Args:
        path_or_name: A TOML file or the name of a ready-made profile; None for the defaults alone.
        overrides: Flags by section and key; None values are flags that were not given. A workload
            ``name`` or ``trace_file`` among them replaces the file's traffic but for its seed, and
            for its number of requests unless it is a trace; limits replace the file's limits.

    Raises:
        ProfileError: See there.
    """
    flags: Values = {
        section: {key: value for key, value in keys.items() if value is not None}
        for section, keys in (overrides or {}).items()
    }
    values, source, name = _read(path_or_name) if path_or_name is not None else ({}, "defaults", "defaults")
    environment = _from_environment(os.environ if environ is None else environ)
    if {"name", "trace_file"} & flags.get("workload", {}).keys():
        kept = {"seed"} if "trace_file" in flags["workload"] else {"seed", "requests"}
        values["workload"] = {k: v for k, v in values.get("workload", {}).items() if k in kept}
    if flags.get("slo"):
        values.pop("slo", None)
        environment.pop("slo", None)
    origin: dict[tuple[str, str], str] = {}
    for layer, origin_of in ((environment, _variable), (flags, _flag)):
        for section, keys in layer.items():
            for key, value in keys.items():
                values.setdefault(section, {})[key] = value
                origin[section, key] = origin_of(section, key)
    try:
        sections = _Sections.model_validate(values)
    except ValidationError as error:
        raise ProfileError(one_line(error, source, origin, _SECTIONS)) from None
    _check_ranges(sections, source, origin)
    return Profile(
        name=name,
        model=sections.model.model_copy(update={"name": _from_anywhere(sections.model.name)}),
        workload=sections.workload,
        slo=_slo(sections.slo, source, origin),
        search=sections.search,
        device=sections.device,
        source=source,
        origin=origin,
    )


def _read(path_or_name: str | os.PathLike[str]) -> tuple[Values, str, str]:
    if not str(path_or_name).strip():
        raise ProfileError(f"no profile is named; give a TOML file or one of {', '.join(profile_names())}")
    path = Path(path_or_name)
    if not path.is_file():
        named = _profiles_folder() / f"{path_or_name}.toml"
        if path.suffix == ".toml" or len(path.parts) > 1:
            raise ProfileError(f"{path}: no such profile file")
        if not named.is_file():
            raise ProfileError(f"unknown profile {str(path)!r}{nearest(str(path), profile_names())}")
        path = named
    try:
        values: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"{path}: could not be read: {error.strerror}") from None
    except ValueError as error:
        raise ProfileError(f"{path}: not valid TOML: {' '.join(str(error).split())}") from None
    for section, keys in values.items():
        if section in _SECTIONS and not isinstance(keys, dict):
            raise ProfileError(f"{path}: {section} = {keys!r}: must be a section; write [{section}]")
    _locate_files(values.get("workload", {}), path.parent)
    _locate_model(values.get("model", {}), path.parent)
    return values, str(path), path.stem


def _locate_files(workload: dict[str, Any], folder: Path) -> None:
    """What lies beside the profile is meant before what lies in the working folder."""
    for key in ("trace_file", *_LENGTHS):
        law, colon, file = "", "", str(workload.get(key, ""))
        if key != "trace_file":
            law, colon, file = file.partition(":")
            if law.strip().lower() != "empirical":
                continue
        beside = folder / file.strip()
        if file.strip() and beside.exists():
            workload[key] = f"{law}{colon}{beside}"


def _locate_model(model: dict[str, Any], folder: Path) -> None:
    """A folder that lies beside the profile is meant before one in the working folder."""
    name = model.get("name")
    if isinstance(name, str) and name.strip() and name != "bundled" and (folder / name).is_dir():
        model["name"] = str(folder / name)


def _from_anywhere(model: str) -> str:
    """A folder by its whole path, so that a sweep of it goes on from another working folder."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if model != "bundled" and folder.is_dir() else model


def _profiles_folder() -> Path:
    installed = Path(__file__).parent / "profiles"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "profiles"


def _from_environment(environ: Mapping[str, str]) -> Values:
    values: Values = {}
    for variable in sorted(environ):
        prefix, _, rest = variable.partition("_")
        section, _, key = rest.lower().partition("_")
        if prefix != "TUNEBATCH" or not rest or variable in _OTHER_VARIABLES:
            continue
        if section not in _SECTIONS or not key:
            close = difflib.get_close_matches(variable.upper(), _variables(), n=1, cutoff=0.0)
            raise ProfileError(
                f"environment {variable} = {environ[variable]!r}: no such setting; did you mean {close[0]}? "
                "(TUNEBATCH_, a profile's section, _ and a key in it)"
            )
        values.setdefault(section, {})[key] = environ[variable]
    return values


def _variables() -> list[str]:
    keys = [
        f"{section}_{key}"
        for section, model in _SECTIONS.items()
        for key in (model.model_fields if model is not None else _SLO_KEYS)
    ]
    return [*_OTHER_VARIABLES, *(f"TUNEBATCH_{key.upper()}" for key in keys)]


def _variable(section: str, key: str) -> str:
    return f"environment TUNEBATCH_{section.upper()}_{key.upper()}"


def _flag(section: str, key: str) -> str:
    flag = {"name": section, "strategies": "strategy", "knobs": "knob"}.get(key, key)
    return "--slo" if section == "slo" else f"--{flag.replace('_', '-')}"


def _slo(limits: Mapping[str, Any], source: str, origin: Mapping[tuple[str, str], str]) -> Slo:
    read: list[Limit] = []
    for name, value in limits.items():
        try:
            (limit,) = parse_slo({name: str(value)})
            Slo((*read, limit))
            read.append(limit)
        except SloError as error:
            where = origin.get(("slo", name), source)
            raise ProfileError(f"{where}: [slo] {name} = {value!r}: {error}") from None
    return Slo(tuple(read))


def _check_ranges(sections: _Sections, source: str, origin: Mapping[tuple[str, str], str]) -> None:
    search, key = sections.search, ("search", "knobs")
    problem = profile_knobs.out_of_reach(search.knobs, sections.device.max_slots)
    # Other strategies by a flag may well leave a range of the file without use.
    if key in origin or ("search", "strategies") not in origin:
        problem = problem or profile_knobs.out_of_place(search.knobs, search.strategies, search.features)
    if problem:
        raise ProfileError(of_a_range(origin.get(key, source), problem))
