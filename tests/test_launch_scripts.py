"""What the scripts hand to torchrun and to Slurm, and what they refuse; the programs they call are stand-ins here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lavis.common.config import Config
from tests.test_published_configs import SCRIPTS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "run_scripts"
SMOKE = "run_scripts/train/smoke.yaml"
READ = ("NNODES", "NPROC_PER_NODE", "GPUS", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "JOB_ID", "MAX_RESTARTS", "EVALUATE")
NODE = {"MASTER_ADDR": "node0", "NODE_RANK": "2"}
LIMIT = 120  # seconds


def environment(**extra: str) -> dict[str, str]:
    dropped = (*READ, "LOG_DIR", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "REQUEUE")
    return {**{key: value for key, value in os.environ.items() if key not in dropped and "SLURM" not in key}, **extra}


def call(script: str, *options: str, **extra: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", str(FOLDER / script), *options]
    return subprocess.run(words, env=environment(**extra), capture_output=True, text=True, timeout=LIMIT)


def program(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def echo(tmp_path: Path) -> str:
    """An interpreter that prints what it is given."""
    return program(tmp_path / "python", 'printf "%s\\n" "$@"')


def options_of(given: list[str]) -> list[str]:
    return given[given.index("--options") + 1 :] if "--options" in given else []


@pytest.mark.parametrize("script", SCRIPTS)
def test_four_node_scripts(script: str, echo: str) -> None:
    assert os.access(FOLDER / script, os.X_OK)
    done = call(script, "run.seed=7", "run.test_splits=[a, b]", PYTHON=echo, **NODE)
    given = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    launch = ["--nnodes=4", "--nproc-per-node=8", "--rdzv-backend=c10d", "--rdzv-endpoint=node0:29500", "--max-restarts=3"]
    assert given[:2] == ["-m", "torch.distributed.run"] and set(launch) <= set(given)
    config = FOLDER / script.replace("_4node.sh", ".yaml")
    assert given[given.index("--cfg-path") + 1] == str(config)
    options = options_of(given)
    assert options[-2:] == ["run.seed=7", "run.test_splits=[a, b]"]
    cfg = Config.from_file(config, options=options)
    assert (cfg.model.enable_aux_regloss, cfg.model.aux_regloss_weight, cfg.run.max_epoch) == (True, 1.0, 30)
    assert cfg.run.seed == 7 and cfg.run.output_dir == f"training_dir/{Path(script).stem}"
    assert cfg.run.resume_ckpt_path == "auto"


@pytest.mark.parametrize(
    ("extra", "options", "message"),
    [
        ({"NODE_RANK": "0"}, [], "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "a"}, [], "NODE_RANK is not set"),
        ({**NODE, "NODE_RANK": "4"}, [], "NODE_RANK is 4; accepted with NNODES=4: 0 to 3"),
        ({**NODE, "NODE_RANK": "one"}, [], "NODE_RANK is 'one'; accepted: a whole number of 0 or more"),
        ({**NODE, "GPUS": "0"}, [], "NPROC_PER_NODE is 0; accepted: a whole number of 1 or more"),
        ({**NODE, "MAX_RESTARTS": "-1"}, [], "MAX_RESTARTS is '-1'; accepted: a whole number of 0 or more"),
        ({**NODE, "EVALUATE": "yes"}, [], "EVALUATE is 'yes'; accepted: 0 or 1"),
        (NODE, ["--fast"], "'--fast' is no key=value"),
    ],
)
def test_scripts_say_what_is_missing(extra: dict[str, str], options: list[str], message: str, echo: str) -> None:
    done = call(SCRIPTS[0], *options, PYTHON=echo, **extra)
    assert done.returncode == 2 and message in done.stderr and not done.stdout


def test_one_node_needs_nothing(echo: str) -> None:
    given = call("launch.sh", SMOKE, PYTHON=echo, GPUS="2").stdout.splitlines()
    assert {"--nnodes=1", "--nproc-per-node=2", "--rdzv-endpoint=127.0.0.1:0", "--rdzv-id=lavis", "--tee=3"} <= set(given)
    assert "--rdzv-conf=is_host=1,join_timeout=600,read_timeout=600" in given and "--log-dir=output/logs" in given
    assert str(ROOT / "train.py") in given and options_of(given) == ["run.resume_ckpt_path=auto"]
    node = {**NODE, "NODE_RANK": "1", "MASTER_PORT": "5"}
    given = call("launch.sh", SMOKE, PYTHON=echo, NNODES="2", JOB_ID="7", LOG_DIR="l", **node).stdout.splitlines()
    named = {"--rdzv-endpoint=node0:5", "--rdzv-id=7", "--rdzv-conf=is_host=0,join_timeout=600,read_timeout=600", "--log-dir=l"}
    assert named <= set(given)
    assert "no configuration file at" in call("launch.sh", "absent.yaml", PYTHON=echo).stderr
    assert "names no configuration" in call("launch.sh", PYTHON=echo).stderr


@pytest.mark.parametrize(
    ("visible", "listed", "count"),
    [("0,1,3", 8, 3), ("", 8, 1), ("-1", 8, 1), ("GPU-4a,GPU-5b", 8, 2), ("MIG-1", 0, 1), (None, 4, 4), (None, 0, 1)],
)
def test_a_process_per_visible_gpu(visible: str | None, listed: int, count: int, echo: str, tmp_path: Path) -> None:
    lines = "\n".join(f"echo 'GPU {number}: some card'; echo '  MIG 1g'" for number in range(listed)) or "exit 9"
    program(tmp_path / "bin" / "nvidia-smi", lines)
    extra = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    done = call("launch.sh", SMOKE, PYTHON=echo, **extra)
    assert f"--nproc-per-node={count}" in done.stdout.splitlines(), done.stderr
    assert "--nproc-per-node=5" in call("launch.sh", SMOKE, PYTHON=echo, NPROC_PER_NODE="5", GPUS="6", **extra).stdout


@pytest.mark.parametrize(
    ("written", "extra", "expected"),
    [
        ("null", {}, "auto"),
        ("null  # from the start", {}, "auto"),
        ("some/nice.pth", {}, "some/nice.pth"),
        ('"nfs/old.pth"', {}, "nfs/old.pth"),
        ("null", {"MAX_RESTARTS": "0"}, None),
        ("null", {"EVALUATE": "1"}, None),
    ],
)
def test_a_started_run_is_gone_on_with(
    written: str, extra: dict[str, str], expected: str | None, echo: str, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {{arch: regionblip_opt}}\nrun:\n  task: vqa\n  resume_ckpt_path: {written}\n")
    given = call("launch.sh", str(config), PYTHON=echo, **extra).stdout.splitlines()
    assert str(ROOT / ("evaluate.py" if "EVALUATE" in extra else "train.py")) in given
    assert Config.from_file(config, options=options_of(given)).run.resume_ckpt_path == expected
    given = call("launch.sh", str(config), "run.resume_ckpt_path=mine.pth", PYTHON=echo, **extra).stdout.splitlines()
    assert Config.from_file(config, options=options_of(given)).run.resume_ckpt_path == "mine.pth"


def test_threads_are_shared_out(tmp_path: Path) -> None:
    python = program(tmp_path / "python", 'echo "$OMP_NUM_THREADS"')
    assert call("launch.sh", SMOKE, PYTHON=python, GPUS="100000").stdout == "1\n"
    assert int(call("launch.sh", SMOKE, PYTHON=python, GPUS="1").stdout) == os.sysconf("SC_NPROCESSORS_ONLN")
    assert call("launch.sh", SMOKE, PYTHON=python, OMP_NUM_THREADS="7").stdout == "7\n"


def wait_for(path: Path, process: subprocess.Popen[str]) -> str:
    end = time.monotonic() + LIMIT
    while not (path.exists() and path.read_text()):
        assert process.poll() is None and time.monotonic() < end, f"{path} was not written"
        time.sleep(0.02)
    return path.read_text()


# torchrun's stand-in: it starts a worker whose command line names train.py, and ends as that does
AGENT = """
trap 'echo agent >> "$OUT/term"; exit 9' TERM
bash "$OUT/worker" "$OUT" train.py &
while kill -0 $! 2>/dev/null; do code=0; wait $! || code=$?; done
exit $code
"""
WORKER = """
trap 'echo saved > "$1/usr1"; exit 0' USR1
echo up > "$1/up"
for _ in {1..2400}; do sleep 0.05; done
"""


@pytest.mark.parametrize(("number", "file", "code"), [(signal.SIGUSR1, "usr1", 0), (signal.SIGTERM, "term", 9)])
def test_launch_passes_signals_on(number: int, file: str, code: int, tmp_path: Path) -> None:
    """SIGUSR1 to the workers, which end the job well; SIGTERM to torchrun. The exit code is torchrun's."""
    program(tmp_path / "worker", WORKER)
    python = program(tmp_path / "python", AGENT)
    words = ["bash", str(FOLDER / "launch.sh"), SMOKE]
    with subprocess.Popen(words, env=environment(PYTHON=python, OUT=str(tmp_path)), text=True, start_new_session=True) as process:
        try:
            wait_for(tmp_path / "up", process)
            process.send_signal(number)
            assert process.wait(LIMIT) == code and (tmp_path / file).exists()
        finally:
            process.kill()


# Slurm: every task of the step on this machine, as srun would start them

SRUN = """
printf '%s\\n' "$@" > "$OUT/srun"
while [[ "$1" == --* ]]; do shift; done
trap 'signalled=1; kill -USR1 "${tasks[@]}"' USR1
for node in 0 1; do SLURM_NODEID=$node bash -c 'exec "$@"' task "$@" > "$OUT/task$node" 2>&1 & tasks[$node]=$!; done
code=0
for task in "${tasks[@]}"; do
    while :; do
        signalled=0 status=0
        wait "$task" || status=$?
        ((signalled && status > 128)) || break
    done
    ((status == 0)) || code=$status
done
exit $code
"""
SCONTROL = """
case "$1 $2" in
"show hostnames") [[ "$3" == "gpu[1-2]" ]] && printf 'gpu1\\ngpu2\\n' ;;
"requeue 4242") echo requeued > "$OUT/requeued" ;;
*) exit 1 ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes."""
    program(tmp_path / "bin" / "srun", SRUN)
    program(tmp_path / "bin" / "scontrol", SCONTROL)
    job = {"JOB_ID": "4242", "JOB_NUM_NODES": "2", "JOB_NODELIST": "gpu[1-2]", "GPUS_ON_NODE": "8", "CPUS_PER_TASK": "64"}
    extra = {f"SLURM_{key}": value for key, value in job.items()}
    return {**extra, "SLURM_SUBMIT_DIR": str(ROOT), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OUT": str(tmp_path)}


def spooled(tmp_path: Path) -> str:
    """Slurm runs a copy of the script."""
    return str(shutil.copy(FOLDER / "slurm.sh", tmp_path / "slurm_script"))


@pytest.mark.parametrize("what", [SMOKE, f"run_scripts/{SCRIPTS[0]}"])
def test_slurm_starts_an_agent_per_node(what: str, slurm: dict[str, str], echo: str, tmp_path: Path) -> None:
    words = ["bash", spooled(tmp_path), what, "run.seed=7"]
    done = subprocess.run(words, env=environment(PYTHON=echo, **slurm), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    step = (tmp_path / "srun").read_text().splitlines()
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"} <= set(step)
    for node in (0, 1):
        given = (tmp_path / f"task{node}").read_text().splitlines()
        named = {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=gpu1:24242", "--rdzv-id=4242"}
        assert named <= set(given) and f"--rdzv-conf=is_host={1 - node},join_timeout=600,read_timeout=600" in given
        assert options_of(given)[-1] == "run.seed=7" and "run.resume_ckpt_path=auto" in given
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("requeue", ["0", "1"])
def test_slurm_saves_before_the_time_ends(requeue: str, slurm: dict[str, str], tmp_path: Path) -> None:
    """SIGUSR1 reaches the workers through srun and launch.sh; the job ends well, or is queued again."""
    program(tmp_path / "worker", WORKER.replace("$1/u", "$1/$SLURM_NODEID.u"))
    given = environment(PYTHON=program(tmp_path / "python", AGENT), REQUEUE=requeue, **slurm)
    words = ["bash", spooled(tmp_path), SMOKE]
    with subprocess.Popen(words, env=given, cwd=ROOT, text=True, start_new_session=True) as process:
        try:
            for node in (0, 1):
                wait_for(tmp_path / f"{node}.up", process)
            process.send_signal(signal.SIGUSR1)
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()
    assert (tmp_path / "0.usr1").exists() and (tmp_path / "1.usr1").exists()
    assert (tmp_path / "requeued").exists() == (requeue == "1")


def test_slurm_hands_a_failure_on_and_says_what_is_missing(slurm: dict[str, str], tmp_path: Path) -> None:
    given = {**slurm, "PYTHON": program(tmp_path / "python", "exit 5"), "REQUEUE": "1"}
    assert call("slurm.sh", SMOKE, **given).returncode == 5 and not (tmp_path / "requeued").exists()
    for options, extra, message in [
        ([], given, "names no configuration"),
        ([SMOKE], {}, "there is no SLURM_JOB_ID; run it with sbatch"),
        ([SMOKE], {**given, "SLURM_SUBMIT_DIR": str(tmp_path)}, f"no run_scripts/launch.sh in {tmp_path}"),
        ([SMOKE], {**given, "REQUEUE": "yes"}, "REQUEUE is 'yes'; accepted: 0 or 1"),
    ]:
        done = call("slurm.sh", *options, **extra)
        assert done.returncode == 2 and message in done.stderr
