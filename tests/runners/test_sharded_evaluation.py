"""Evaluation of a model whose blocks are sharded, by processes that have different numbers of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common import dist_utils
from lavis.runners.evaluation import evaluate_dataset
from lavis.runners.sharding import place
from tests import tiny
from tests.distributed import run_distributed
from tests.models.test_sampling import build
from tests.tasks.test_vqa import dataset_of, task_of

QUESTIONS = 5  # two for one process, three for the other, in batches of one


def score(folder: str, config: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Metrics and steps of the language model; each process has files of its own."""
    root = Path(folder) / str(dist_utils.get_rank())
    root.mkdir()
    said = {"image": "x_1.png", "question": "say red", "answer": "red"}
    rows = [{**said, "question_id": key} for key in range(QUESTIONS)]
    model = build(config, hasty=False)
    model = place(model, shard="all", device=torch.device("cpu"))
    assert dist_utils.is_sharded(model) == (dist_utils.get_world_size() > 1)
    task = task_of(root, batch_size_eval=1)
    arguments = {"task": task, "model": model, "run_cfg": task.run_cfg, "device": torch.device("cpu"), "name": "val", "epoch": 0}
    dataset = dataset_of(root, rows=rows, size=28)
    return evaluate_dataset(dataset, output_dir=root / "out", **arguments), model.steps


@pytest.mark.slow
def test_a_process_with_fewer_batches_goes_on_until_all_are_done(tmp_path: Path) -> None:
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        pytest.skip("run.shard needs torch 2.8 or newer")
    config = tiny.model_config(tmp_path / "model", "blip2_opt")
    (tmp_path / "alone").mkdir()
    alone, _ = score(str(tmp_path / "alone"), config)
    (first, steps), (second, others) = run_distributed(score, str(tmp_path), config, folder=tmp_path / "returned")
    assert first == second == alone and first["num_samples"] == QUESTIONS
    assert steps == others > 0
