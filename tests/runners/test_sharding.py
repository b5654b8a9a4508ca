"""Frozen layers in shards: the same losses, gradients, texts and checkpoints, and the bytes that the account says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import fsdp
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lavis.common import dist_utils
from lavis.common.config import ConfigError
from lavis.common.seeding import clear_step, seed_step
from lavis.models import load_model_from_config
from lavis.runners.checks import check_run
from lavis.runners.memory import account
from lavis.runners.runner_base import RunnerBase
from lavis.runners.sharding import SHARDS, place, shard_layers, stacks_to_shard
from lavis.tasks import setup_task
from tests import tiny
from tests.distributed import run_distributed
from tests.runners.fakes import FakeModel, config

CPU = torch.device("cpu")
MODALITIES = ("image", "image_region", "pointcloud", "pointcloud_region")
HAS_FSDP = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
needs_fsdp = pytest.mark.skipif(not HAS_FSDP, reason="run.shard needs torch 2.8 or newer")


def build(folder: str, arch: str, *, autocast: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Without dropout, and with adapters that do something."""
    model = load_model_from_config(
        tiny.model_config(Path(folder), arch, enable_aux_regloss=True, llm_dropout=False, qformer_pc_dropout=False, **changes),
        autocast=autocast,
    )
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def bytes_of(params: Iterable[torch.nn.Parameter]) -> int:
    """What this process holds of parameters, padding of shards included."""
    tensors = [param.data for param in params]
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.untyped_storage().nbytes() for tensor in local)


def measure(folder: str, arch: str, shard: str, **changes: Any) -> dict[str, Any]:
    """Losses and gradients of a batch of every modality, texts of unequal batches, and what is held."""
    model = place(build(folder, arch, **changes), shard=shard, device=CPU).train()
    trainable = {name: param for name, param in model.named_parameters() if param.requires_grad}
    numbers: dict[str, torch.Tensor] = {}
    for modality in MODALITIES:
        seed_step(7, 11, dist_utils.get_rank())
        losses = model(tiny.batch_of(modality, rows=3))
        losses.loss.backward()
        clear_step()
        dist_utils.average_gradients(trainable.values())
        numbers |= {f"{modality} {name}": value.detach() for name, value in losses.items()}
        numbers |= {f"{modality} {name}": param.grad for name, param in trainable.items() if param.grad is not None}
        model.zero_grad()
    model.eval()
    with dist_utils.single_process():
        rows = 2 + torch.distributed.get_rank()
        settings = {"num_beams": 2, "max_length": 9, "min_length": 3}
        texts = [model.generate(tiny.batch_of(modality, rows=rows), **settings) for modality in MODALITIES[::2]]
    return {
        "numbers": numbers,
        "texts": texts,
        "checkpoint": {name: value.clone() for name, value in model.trainable_state_dict().items()},
        "bases": model.frozen_bases(),
        "held": bytes_of(param for param in model.parameters() if not param.requires_grad),
        "sharded": [type(param.data).__name__ for param in model.llm.parameters()].count("DTensor"),
    }


def measure_all(folder: str, arch: str) -> list[dict[str, Any]]:
    runs: list[Callable[[], dict[str, Any]]] = [partial(measure, folder, arch, shard) for shard in ("none", "llm", "all")]
    return [run() for run in (*runs, partial(measure, folder, arch, "all", llm_grad_checkpoint=True))]


@needs_fsdp
@pytest.mark.parametrize("arch", ["regionblip_opt", pytest.param("regionblip_t5", marks=pytest.mark.slow)])
def test_shards_change_nothing_but_what_is_held(tmp_path: Path, arch: str) -> None:
    whole = build(str(tmp_path / "model"), arch)
    expected = [account(whole, world_size=2, shard=shard).frozen for shard in ("none", "llm", "all", "all")]
    assert expected[0] > expected[1] > expected[2] > expected[0] / 2
    for straight, *others in run_distributed(measure_all, str(tmp_path / "model"), arch, folder=tmp_path / "returned"):
        assert straight["sharded"] == 0 and straight["held"] == expected[0]
        assert any(text for texts in straight["texts"] for text in texts)
        for run, held in zip(others, expected[1:], strict=True):
            assert run["sharded"] > 0 and run["held"] == held
            assert run["texts"] == straight["texts"] and run["bases"] == straight["bases"]
            assert run["numbers"].keys() == straight["numbers"].keys()
            for name, value in straight["numbers"].items():
                scale = value.abs().max().clamp(min=1e-3)
                assert (run["numbers"][name] - value).abs().max() / scale < 1e-6, name
            assert run["checkpoint"].keys() == straight["checkpoint"].keys()
            assert all(torch.equal(run["checkpoint"][name], value) for name, value in straight["checkpoint"].items())


class Batches(torch.utils.data.Dataset[dict[str, Any]]):
    """Eight rows of a modality."""

    share_inputs = False

    def __init__(self, modality: str) -> None:
        self.name = self.modality = modality
        self.batch = tiny.batch_of(modality, rows=8)
        self.batch["text_input"] = [*tiny.TEXTS, *tiny.TEXTS][:8]

    def __len__(self) -> int:
        return 8

    def set_seed(self, seed: int) -> None: ...

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        return {name: value[index] for name, value in self.batch.items() if name != "modality"}

    def collater(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        stacked = {name: torch.stack(column) if torch.is_tensor(column[0]) else column for name, column in columns.items()}
        return {**stacked, "modality": self.modality}


def train(folder: str, arch: str, shard: str, resume: str | None = None) -> dict[str, Any]:
    """Two updates, each of a batch of every modality: what is held on the way, and the weights at the end."""
    run = {"shard": shard, "task_order": "round_robin", "accum_grad_iters": 4, "max_epoch": 1, "save_freq": "4 steps"}
    out = Path(folder) / (f"{shard}_resumed" if resume else shard)
    cfg = config(out, **run, batch_size_train=2, resume_ckpt_path=resume or "null")
    task, model = setup_task(cfg), build(f"{folder}/model", arch)
    runner = RunnerBase(cfg, task=task, model=model, datasets={name: {"train": Batches(name)} for name in MODALITIES})
    trainable = [param for param in model.parameters() if param.requires_grad]
    held = {"trained": sum(param.nbytes for param in trainable)}

    def before(*_: Any) -> None:
        held["gradients"] = sum(param.grad.nbytes for param in trainable if param.grad is not None)

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        assert {tensor.dtype for tensor in moments} == {torch.float32}
        held["moments"] = sum(tensor.nbytes for tensor in moments)

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    runner.train()
    for hook in hooks:
        hook.remove()
    held["frozen"] = bytes_of(param for param in model.parameters() if not param.requires_grad)
    return {"held": held, "weights": {name: value.clone() for name, value in model.trainable_state_dict().items()}}


def train_all(folder: str, arch: str) -> list[dict[str, Any]]:
    """As they are, then each from the middle of another."""
    straight = [train(folder, arch, shard) for shard in SHARDS]
    return straight + [
        train(folder, arch, shard, f"{folder}/{other}/checkpoint_0_step4.pth")
        for shard, other in (("none", "all"), ("llm", "none"))
    ]


@needs_fsdp
@pytest.mark.parametrize("arch", ["regionblip_opt", pytest.param("regionblip_t5", marks=pytest.mark.slow)])
def test_a_training_holds_what_the_account_says_and_goes_on_in_other_shards(tmp_path: Path, arch: str) -> None:
    """Weights, gradients and moments to the byte; checkpoints do not know of shards."""
    whole = build(str(tmp_path / "model"), arch)
    learning = {}
    for modality in MODALITIES:
        whole(tiny.batch_of(modality, rows=2)).loss.backward()
        learning[modality] = [name for name, param in whole.named_parameters() if param.grad is not None]
        whole.zero_grad()
    first, second = run_distributed(train_all, str(tmp_path), arch, folder=tmp_path / "returned")
    for run, other, shard in zip(first, second, SHARDS, strict=False):
        said = account(whole, world_size=2, shard=shard, learning=learning, accumulate=True)
        expected = {"trained": said.trained, "gradients": said.gradients, "moments": said.moments, "frozen": said.frozen}
        assert run["held"] == other["held"] == expected
        assert said.bucket == said.gradients and (said.gathered > 0) == (shard != "none")
    checkpoints = [torch.load(tmp_path / shard / "checkpoint_0_step4.pth", weights_only=False) for shard in SHARDS]
    for checkpoint in checkpoints[1:]:
        assert checkpoint["model"].keys() == checkpoints[0]["model"].keys()
        assert not any(isinstance(value, DTensor) for value in checkpoint["model"].values())
        assert checkpoint["optimizer"]["state"].keys() == checkpoints[0]["optimizer"]["state"].keys()
    straight, *others = (torch.cat([value.flatten() for value in run["weights"].values()]) for run in first)
    halfway = torch.cat([checkpoints[0]["model"][name].flatten() for name in first[0]["weights"]])
    assert (straight - halfway).norm() > 0.01 * straight.norm()  # the second update, which the resumed runs did themselves
    for weights in others:
        assert (weights - straight).norm() < 1e-5 * straight.norm()


def test_one_process_shards_nothing_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = place(build(str(tmp_path), "regionblip_t5"), shard="all", device=CPU)
    assert not any(isinstance(param, DTensor) for param in model.parameters())
    assert "run.shard is all, but there is one process: nothing is sharded" in caplog.text


def test_what_cannot_be_sharded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="run.shard is llm, but FakeModel has no frozen language model; accepted: none"):
        place(FakeModel(), shard="llm", device=CPU)
    with pytest.raises(ConfigError, match="run.shard is all, but FakeModel has no frozen layers"):
        place(FakeModel(), shard="all", device=CPU)
    with pytest.raises(ConfigError, match="Unknown run.shard 'lllm'.*Did you mean 'llm'"):
        check_run(config(tmp_path / "out", shard="lllm").run_cfg)
    with pytest.raises(ConfigError, match="inference_method is rank.*run.shard is llm"):
        check_run(config(tmp_path / "out", shard="llm", inference_method="rank").run_cfg)
    stacks = stacks_to_shard(build(str(tmp_path / "model"), "regionblip_opt"), "llm")

    def of_torch_2_6(module: Any, *, mesh: Any = None, reshard_after_forward: bool = True, mp_policy: Any = None) -> Any: ...

    monkeypatch.setattr(fsdp, "fully_shard", of_torch_2_6)
    with pytest.raises(ConfigError, match=r"run.shard needs torch 2.8 or newer, this is .*; accepted here: none"):
        shard_layers(stacks, device=CPU)


def test_stacks_are_found_in_every_part(tmp_path: Path) -> None:
    model = build(str(tmp_path), "regionblip_t5")
    names = [(stack.name, len(stack.layers)) for stack in stacks_to_shard(model, "all")]
    assert names == [
        ("visual_encoder", 2),
        ("point_encoder.blocks", 1),
        ("Qformer.bert.encoder", 2),
        ("llm.model.encoder", 2),
        ("llm.model.decoder", 2),
    ]  # Qformer_pc is trained
    assert [stack.name for stack in stacks_to_shard(model, "llm")] == ["llm.model.encoder", "llm.model.decoder"]


def autocast_losses(folder: str) -> list[dict[str, Any]]:
    """Losses and gradients of a batch under autocast, whole and in shards."""
    found: list[dict[str, Any]] = []
    for shard in ("none", "all"):
        model = place(build(folder, "regionblip_opt", autocast=torch.bfloat16), shard=shard, device=CPU, autocast=torch.bfloat16)
        assert model.llm.dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model.train()(tiny.batch_of("image_region", rows=3))
        losses.loss.backward()
        grads = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
        found.append({"loss": losses.loss.detach(), **grads})
    return found


@needs_fsdp
def test_layers_of_two_types_are_sharded_under_autocast(tmp_path: Path) -> None:
    tiny.model_config(tmp_path / "model", "regionblip_opt")
    for whole, shards in run_distributed(autocast_losses, str(tmp_path / "model"), folder=tmp_path / "returned"):
        assert whole.keys() == shards.keys() and len(whole) > 10
        for name, value in whole.items():
            torch.testing.assert_close(shards[name], value, atol=1e-6, rtol=1e-6, msg=name)
