"""A hub that is not there is noticed at once, and a proxy stands for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tunebatch.cli.errors import USAGE, report_error
from tunebatch.execute.torch.load import ModelError, load_executor
from tunebatch.models import hub


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "getproxies", dict)


def test_a_hub_that_takes_a_connection_answers(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", listening)
    assert hub.hub_answers()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.hub_answers()


def test_a_proxy_is_asked_in_place_of_the_hub(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": listening})
    monkeypatch.setattr(hub, "proxy_bypass", lambda host: False)
    assert hub.hub_answers()


def test_who_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def connect(*_: Any, **__: Any) -> None:
        done.wait(60)
        raise OSError

    monkeypatch.setattr(hub.socket, "create_connection", connect)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.05")
    assert not hub.hub_answers()
    done.set()


def test_a_model_that_is_not_to_be_had_is_told_with_what_waits_longer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "transformers.AutoConfig.from_pretrained", lambda path, **rest: asked.append(rest) or 1 / 0
    )
    monkeypatch.setattr("tunebatch.execute.torch.load.hub_answers", lambda: False)
    with pytest.raises(ModelError) as refused:
        load_executor("nobody/nothing", device="cpu")
    assert asked == [{"local_files_only": True, "trust_remote_code": False}]
    assert report_error(refused.value) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "nobody/nothing: not among the models downloaded before, and https://huggingface.co did" in line
    assert "within 3 s; HF_HUB_ETAG_TIMEOUT=30 waits longer" in line
