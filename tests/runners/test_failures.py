"""Which error is shown when one process of several fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.distributed as dist

from lavis.runners import failures

GLOO = "[/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:42176. This is typically a crash.\nMore."


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(GLOO), True),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:525] Read error [127.0.0.1]:9120: Connection reset by peer"), True),
        (dist.DistNetworkError("Failed to recv, got 0 bytes. Did the remote server shutdown or crash?"), True),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),  # a file server's, say
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed"), False),
    ],
)
def test_what_counts_as_the_end_of_another_process(error: Exception, lost: bool) -> None:
    assert failures.is_peer_lost(error) == lost


def failing(error: Exception) -> None:
    raise error


def test_torchrun_finds_an_error_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert failures.recorded(lambda: 7) == 7 and not list(tmp_path.iterdir())
    with pytest.raises(KeyError, match="mine"):
        failures.recorded(lambda: failing(KeyError("mine")))
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["message"] == "KeyError: 'mine'" and "in failing" in message["extraInfo"]["py_callstack"]


def test_the_error_of_a_lost_process_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is recorded before torchrun had its time to find the other one; then in plain words."""
    file = tmp_path / "error.json"
    waited: list[bool] = []
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(failures, "_wait_to_be_ended", lambda: waited.append(file.exists()))
    with pytest.raises(failures.PeerLostError, match="rank 3 stopped because another process of the run ended") as caught:
        failures.recorded(lambda: failing(RuntimeError(GLOO)))
    assert waited == [False] and file.exists()
    failures.show(caught.value)
    shown = capsys.readouterr().err
    assert "rank 3: another process ended" in shown and "Connection closed by peer" in shown
    assert "Traceback" not in shown and "More." not in shown


def test_without_torchrun_errors_are_as_ever(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    with pytest.raises(KeyError, match="mine") as caught:
        failures.recorded(lambda: failing(KeyError("mine")))
    failures.show(caught.value)
    assert "in failing" in capsys.readouterr().err
