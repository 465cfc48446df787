"""What a sweep's folder says about how it was begun, so that it can go on as it began."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebatch.cli.errors import CliError

if TYPE_CHECKING:
    from tunebatch.profile import Profile

_FILE = "command.json"
_TRACE_FILE = "TUNEBATCH_WORKLOAD_TRACE_FILE"
_FLAGS = {
    ("model", "name"): "--model",
    ("model", "draft"): "--draft",
    ("model", "acceptance"): "--acceptance",
    ("model", "device"): "--device",
    ("workload", "name"): "--workload",
    ("workload", "trace_file"): "--trace-file",
    ("workload", "requests"): "--requests",
    ("workload", "seed"): "--seed",
}


def begun(folder: Path) -> bool:
    """A sweep was begun in this folder."""
    return (folder / _FILE).is_file()


def resumed(folder: Path, call: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the sweep was begun with, and the same changed by the flags given now.

    Raises:
        CliError: No sweep was begun there, or one with another profile.
    """
    import json

    try:
        text = (folder / _FILE).read_text(encoding="utf-8")
        begun_with: dict[str, Any] = {"environment": {}, **json.loads(text)}
        old: dict[str, Any] = json.loads(text)
        for section, keys in call["flags"].items():
            given = {key: value for key, value in keys.items() if value is not None}
            old["flags"].setdefault(section, {}).update(given)
        old["environment"] = {**old.get("environment", {}), **call["environment"]}
        for key in ("baseline", "start_rate"):
            old[key] = call[key] if call[key] is not None else old[key]
        profile = str(old["profile"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise CliError(f"--resume {folder}: no sweep was begun there ({_FILE} missing or broken)") from None
    given = call["profile"]
    if given is not None and _profile_from_anywhere(given) != _profile_from_anywhere(profile):
        raise CliError(
            f"--resume {folder}: that sweep was begun with --profile {profile}; "
            f"leave out --profile {given}, or begin another sweep with it"
        )
    return begun_with, old


def refuse_in_use(folder: Path) -> None:
    """Before a model is loaded beside the runs that another process measures there; who sweeps looks again.

    Raises:
        SweepInUseError: One is at work there.
    """
    from tunebatch.tune.journal_file import only_writer  # imports optuna

    with only_writer(folder):
        pass


def refuse_other_question(folder: Path, begun_with: Profile, asked: Profile) -> None:
    """Refuses, before a model is loaded, to go on with what its numbers could not be compared with; what only
    the model and the machine tell is looked at when it is loaded.

    Raises:
        CliError: Another model, traffic, SLO, objective or set of strategies.
    """
    before, now = _question(begun_with), _question(asked)
    for name in before | now:
        if before.get(name) != now.get(name):
            raise CliError(
                f"{folder} holds a sweep with {name} = {before.get(name)!r}, not {now.get(name)!r}; "
                "choose another directory, or repeat its settings to resume it"
            )


def _question(asked: Profile) -> dict[str, Any]:
    from tunebatch.profile_knobs import range_text

    traffic = asked.workload.given()
    if "trace_file" in traffic:
        traffic["trace_file"] = str(Path(traffic["trace_file"]).resolve())
    return {
        "strategies": asked.search.strategies,
        "knobs": [f"{name}={range_text(name, *ends)}" for name, ends in asked.search.knobs.items()],
        "sampler": asked.search.sampler,
        "objective": asked.search.objective,
        "seed": asked.search.seed,
        "slo": asked.slo.texts(),
        "model": asked.model.name,
        "draft": asked.model.draft,
        "acceptance": list(asked.model.acceptance),
        "block_size": asked.device.block_size,
        "num_blocks": asked.device.num_blocks,
        "max_slots": asked.device.max_slots,
        **{f"[workload] {name}": value for name, value in traffic.items()},
    }


def settings_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment's settings, which a sweep goes on with wherever it does; files by their whole paths."""
    found = {
        name: value
        for name, value in environ.items()
        if name.startswith("TUNEBATCH_") and name != "TUNEBATCH_DEBUG"
    }
    trace = found.get(_TRACE_FILE)
    if trace is not None and Path(trace).is_file():
        found[_TRACE_FILE] = str(Path(trace).resolve())
    return found


def settings_elsewhere(call: dict[str, Any]) -> str:
    """The settings that a command typed now would lack, as a shell takes them in front of it."""
    return "".join(
        f"{name}={shlex.quote(value)} "
        for name, value in call["environment"].items()
        if name not in os.environ
    )


def keep_call(folder: Path, call: dict[str, Any]) -> None:
    """Writes down what the sweep was begun with, with whole paths: it may go on in another working folder."""
    from tunebatch.cli import output

    flags = {section: dict(keys) for section, keys in call["flags"].items()}
    trace = flags.get("workload", {}).get("trace_file")
    if trace is not None:
        flags["workload"]["trace_file"] = str(Path(trace).resolve())
    kept = {**call, "profile": _profile_from_anywhere(call["profile"]), "flags": flags}
    output.write_json(folder / _FILE, kept)


def _profile_from_anywhere(profile: str) -> str:
    """A file by its whole path; a ready-made one by its name."""
    return str(Path(profile).resolve()) if Path(profile).is_file() else profile


def same_question(call: dict[str, Any]) -> str:
    """The flags with which another command measures the same model, traffic and SLO."""
    words = [] if call["profile"] == "quickstart" else ["--profile", call["profile"]]
    for (section, key), flag in _FLAGS.items():
        value = call["flags"].get(section, {}).get(key)
        if value is not None:
            words += [flag, str(value)]
    for name, limit in call["flags"].get("slo", {}).items():
        words += ["--slo", f"{name}<={limit}"]
    return "".join(f" {shlex.quote(word)}" for word in words)
