"""The measurement of caption metrics runs, and finds both sides' numbers equal (not how long they take)."""

from __future__ import annotations

import pytest

from benchmarks import caption_metrics


@pytest.mark.slow
def test_small(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert caption_metrics.main(["--items", "300", "--repeats", "1"]) == 0
    assert "times faster" in capsys.readouterr().out
    theirs = caption_metrics.theirs
    monkeypatch.setattr(caption_metrics, "theirs", lambda *captions: {**theirs(*captions), "CIDEr": (0.1, [0.1] * 300)})
    assert caption_metrics.main(["--items", "300", "--repeats", "1"]) == 1
