"""Extraction by Dask workers: real schedulers and workers, started as their commands, that are killed, lack something
or differ."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.clusters import Cluster, dask, wait_until, without
from tests.extract.clips import Clip
from tests.extract.run.command import SMALL, contents, run_command
from tests.extract.test_faults import CHANGED, broken_installation
from tests.pipelines.commands import BIN
from tests.processes import children

from aqa_extract import quarantine
from aqa_shared.errors import ExitCode
from aqa_shared.store import FeatureStore

KILLS = int(os.environ.get("AQA_TEST_KILLS", "100"))
QUICK = ("--scheduler-wait", "5")


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, i3d_rgb_weights: str) -> tuple[Path, dict[str, bytes]]:
    """Clips that two workers have for some seconds, and what a store of them holds that nothing disturbed."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(64):
        Clip(frames=20 + i, size=(64 + 2 * (i % 4), 48)).write(folder / f"{i:02}")
    store = folder.parent / "many-undisturbed.zarr"
    assert run_command(folder, store).returncode == ExitCode.OK
    return folder, contents(store)


def started(clips: Path, store: Path, *options: object) -> subprocess.Popen[str]:
    command = [BIN / "aqa-extract", clips, "--out", store, *SMALL, *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def staged(store: Path) -> int:
    return len(list(store.glob("staged/*.json")))


def test_two_workers_make_what_one_process_makes(clips: Path, undisturbed: Path, two: Cluster, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    done = run_command(clips, store, "--scheduler", str(two.file))
    assert done.returncode == ExitCode.QUARANTINED, done.stderr
    assert f"Dask scheduler {two.address}\n" in done.stderr
    assert "extract: 6/6" in done.stderr
    assert "broken.mp4" in done.stdout
    assert list(quarantine.read(store)) == ["broken.mp4"]
    assert contents(store) == contents(undisturbed)
    assert FeatureStore.open(store).provenance == FeatureStore.open(undisturbed).provenance
    again = run_command(clips, store, "--scheduler", two.address, "--streams", "rgb,rot180-rgb")
    assert "5 extracted, 0 already there" in again.stdout
    alone = run_command(clips, tmp_path / "alone.zarr", "--streams", "rgb,rot180-rgb")
    assert alone.returncode == ExitCode.QUARANTINED
    assert contents(store) == contents(tmp_path / "alone.zarr")
    wait_until(lambda: two.tasks == 0)
    assert len(two.client.nthreads()) == 2


def test_workers_of_our_own(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    done = run_command(clips, tmp_path / "s.zarr", "--scheduler", "local:2")
    assert done.returncode == ExitCode.QUARANTINED, done.stderr
    assert contents(tmp_path / "s.zarr") == contents(undisturbed)


def test_a_killed_worker_costs_what_it_had_begun(
    many: tuple[Path, dict[str, bytes]], two: Cluster, tmp_path: Path
) -> None:
    clips, expected = many
    store = tmp_path / "s.zarr"
    with started(clips, store, "--scheduler", two.address) as run:
        wait_until(lambda: staged(store) >= 2)
        os.kill(two.pids[0], signal.SIGKILL)
        said = run.communicate(timeout=200)
    assert run.returncode == ExitCode.OK, said
    assert contents(store) == expected
    wait_until(lambda: len(two.client.nthreads()) == 2)


def test_a_worker_keeps_its_decode_child_between_blocks(
    many: tuple[Path, dict[str, bytes]], two: Cluster, tmp_path: Path
) -> None:
    seen, workers = set(), set(two.pids)
    with started(many[0], tmp_path / "s.zarr", "--scheduler", two.address) as run:
        while run.poll() is None:
            seen |= decoders(workers)
            time.sleep(0.02)
        said = run.communicate()
    assert run.returncode == ExitCode.OK, said
    assert seen
    assert len(seen) <= 2  # of many blocks, all of which the first one that is ready may have done
    wait_until(lambda: not decoders(workers))


def decoders(workers: set[int]) -> set[int]:
    """Pids of what these processes decode with."""
    return {p for worker in workers for p in children(worker, "aqa_extract.decode.worker")}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_cluster_clean(
    number: int, code: int, many: tuple[Path, dict[str, bytes]], two: Cluster, tmp_path: Path
) -> None:
    clips, expected = many
    store = tmp_path / "s.zarr"
    with started(clips, store, "--scheduler", two.address) as run:
        wait_until(lambda: staged(store) >= 2)
        run.send_signal(number)
        _, err = run.communicate(timeout=200)
    assert run.returncode == code, err
    assert "finishing what the workers have begun" in err
    assert "videos extracted by this run, which the next one keeps" in err
    wait_until(lambda: two.tasks == 0)
    assert len(two.client.nthreads()) == 2
    assert not list(store.glob("staged/session-*"))
    done = run_command(clips, store, "--scheduler", two.address)
    assert done.returncode == ExitCode.OK, done.stderr
    assert contents(store) == expected


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_workers_of_our_own_in_order(
    many: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    """A terminal sends it to every process of the group, the workers among them."""
    store = tmp_path / "s.zarr"
    with started(many[0], store, "--scheduler", "local:2") as run:
        wait_until(lambda: staged(store) >= 2)
        os.killpg(run.pid, signal.SIGINT)
        _, err = run.communicate(timeout=200)
    assert run.returncode == ExitCode.INTERRUPTED, err
    assert "Traceback" not in err
    wait_until(lambda: subprocess.run(["pgrep", "-g", str(run.pid)], capture_output=True).stdout == b"")


def test_a_gpu_that_no_worker_declares_is_named_in_time(clips: Path, two: Cluster, tmp_path: Path) -> None:
    done = run_command(clips, tmp_path / "s.zarr", "--scheduler", two.address, "--device", "cuda", *QUICK)
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert "it declares no GPU" in done.stderr
    assert f"dask worker {two.address} --nthreads 1 --resources GPU=1" in done.stderr
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.slow
@pytest.mark.skipif("CUDA_VISIBLE_DEVICES" in os.environ, reason="this test hides the GPUs")
def test_a_worker_that_declares_a_gpu_and_sees_none_gets_no_work(clips: Path, tmp_path: Path) -> None:
    with dask(tmp_path) as cluster:
        cluster.worker("--resources", "GPU=1", CUDA_VISIBLE_DEVICES="")
        done = run_command(clips, tmp_path / "s.zarr", "--scheduler", cluster.address, *QUICK)  # auto: as declared
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert "this machine shows 0 CUDA devices" in done.stderr


def test_a_store_that_a_worker_does_not_see_is_the_machines_fault(clips: Path, two: Cluster, tmp_path: Path) -> None:
    """What is in memory is in the memory of one process."""
    done = run_command(clips, "memory://dask-test.zarr", "--scheduler", two.address, *QUICK)
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert "memory://dask-test.zarr is not the store there that it is here" in done.stderr
    assert "worker tcp://127.0.0.1:" in done.stderr
    assert "give --out a folder that all machines see" in done.stderr


@pytest.mark.slow
def test_videos_that_no_worker_sees_are_the_machines_fault(clips: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    with dask(tmp_path) as cluster:
        cluster.worker(before=without(clips))
        done = run_command(clips, store, "--scheduler", cluster.address, *QUICK)
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert f"there is no readable {clips}" in done.stderr
    assert "mount the videos under the same path" in done.stderr
    assert quarantine.read(store) == {}


@pytest.mark.slow
def test_a_worker_that_lacks_something_is_named_and_the_next_one_does_the_work(
    clips: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """One without the videos and one of another version; then comes one that is whole."""
    (tmp_path / "other" / "aqa-9.9.9.dist-info").mkdir(parents=True)
    metadata = "Metadata-Version: 2.1\nName: aqa\nVersion: 9.9.9\n"
    (tmp_path / "other" / "aqa-9.9.9.dist-info" / "METADATA").write_text(metadata)
    store, log = tmp_path / "s.zarr", tmp_path / "said"
    with dask(tmp_path) as cluster, log.open("w") as said:
        cluster.worker(before=without(clips))
        cluster.worker(PYTHONPATH=str(tmp_path / "other"))
        command = [BIN / "aqa-extract", clips, "--out", store, *SMALL, "--scheduler", cluster.address]
        with subprocess.Popen(command, stderr=said) as run:
            wait_until(lambda: log.read_text().count("gets no work") == 2)
            cluster.worker()
        told = log.read_text()
    assert run.returncode == ExitCode.QUARANTINED, told
    assert "gets no work: it has aqa 9.9.9 (here " in told
    assert "gets no work: there is no readable" in told
    assert list(quarantine.read(store)) == ["broken.mp4"]
    assert contents(store) == contents(undisturbed)


DIES = """
import os, signal, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "aqa_extract.networks":
            os.kill(os.getpid(), signal.SIGKILL)
sys.meta_path.insert(0, Finder)
"""


def test_a_worker_killed_while_it_loads_networks_is_asked_again(
    many: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    """Before its first block; what restarts workers starts it again."""
    clips, expected = many
    store = tmp_path / "s.zarr"
    with dask(tmp_path) as cluster:
        cluster.worker()
        before = cluster.pids
        with started(clips, store, "--scheduler", cluster.address) as run:
            wait_until(lambda: any(str(key).startswith("load_networks") for key in at_work(cluster)))
            os.kill(before[0], signal.SIGKILL)
            _, err = run.communicate(timeout=200)
        assert cluster.pids != before
    assert run.returncode == ExitCode.OK, err
    assert "died while it was to load the networks; see its log" in err
    assert contents(store) == expected


def at_work(cluster: Cluster) -> list[object]:
    """Keys of what workers compute."""
    return [key for keys in cluster.client.processing().values() for key in keys]


def test_workers_that_always_die_while_they_load_networks_end_the_run(clips: Path, tmp_path: Path) -> None:
    with dask(tmp_path) as cluster:
        begun = time.monotonic()
        cluster.worker(PYTHONPATH=broken_installation(tmp_path / "site", DIES))
        # Between two deaths nobody is there for as long as a worker takes to start.
        patience = max(5, round(3 * (time.monotonic() - begun)))
        done = run_command(
            clips, tmp_path / "s.zarr", "--scheduler", cluster.address, "--scheduler-wait", str(patience)
        )
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert "3 workers of its host died while they were to load the networks" in done.stderr
    assert not (tmp_path / "s.zarr").exists()


CRASHES = """
import os, signal, sys
if "aqa_extract.decode.worker" in sys.orig_argv:
    import av
    was = av.open
    def open(file, *rest, **more):
        if os.path.getsize(file.removeprefix("file:")) == {size}:
            os.kill(os.getpid(), signal.SIGSEGV)
        return was(file, *rest, **more)
    av.open = open
"""


@pytest.mark.slow
def test_a_video_that_kills_its_decoder_leaves_the_worker_alive(clips: Path, tmp_path: Path) -> None:
    site = broken_installation(tmp_path / "site", CRASHES.format(size=(clips / "clip2.mp4").stat().st_size))
    alone = run_command(clips, tmp_path / "alone.zarr", PYTHONPATH=site)
    with dask(tmp_path) as cluster:
        cluster.worker(PYTHONPATH=site)
        before = cluster.pids
        done = run_command(clips, tmp_path / "s.zarr", "--scheduler", cluster.address)
        assert cluster.pids == before
    assert done.returncode == alone.returncode == ExitCode.QUARANTINED, done.stderr
    reasons = {i: f.reason for i, f in quarantine.read(tmp_path / "s.zarr").items()}
    assert reasons == {"broken.mp4": "not_a_video", "clip2.mp4": "decoder_crashed"}
    assert reasons == {i: f.reason for i, f in quarantine.read(tmp_path / "alone.zarr").items()}
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "alone.zarr")


@pytest.mark.slow
def test_what_a_broken_worker_fails_another_one_does(many: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    clips, expected = many
    with dask(tmp_path) as cluster:
        cluster.worker(PYTHONPATH=broken_installation(tmp_path / "site", CHANGED.format(least=0)))
        cluster.worker()
        cluster.client.run(import_torch)  # so that both begin at about the same time
        done = run_command(clips, tmp_path / "s.zarr", "--scheduler", cluster.address)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "(decoder_error) on tcp://127.0.0.1:" in done.stderr
    assert quarantine.read(tmp_path / "s.zarr") == {}
    assert contents(tmp_path / "s.zarr") == expected


FULL_ONCE = """
import errno
from aqa_shared.store import StoreWriter
tried = []
def first_fails(*given, commit=StoreWriter.commit):  # Dask loads this twice
    if not tried:
        tried.append(True)
        raise OSError(errno.ENOSPC, "No space left on device")
    return commit(*given)
StoreWriter.commit = first_fails
"""


@pytest.mark.slow
def test_a_worker_that_could_not_write_once_goes_on(many: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """Its decode children were ended with the block that failed, and no other block is to find them dead."""
    clips, expected = many
    (tmp_path / "full.py").write_text(FULL_ONCE)
    with dask(tmp_path) as cluster:
        cluster.worker("--preload", str(tmp_path / "full.py"))
        done = run_command(clips, tmp_path / "s.zarr", "--scheduler", cluster.address)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "No space left on device" in done.stderr
    assert "interrupted" not in done.stderr
    assert contents(tmp_path / "s.zarr") == expected


def import_torch() -> None:
    import aqa_extract.networks
    import aqa_extract.pipeline  # noqa: F401


@pytest.mark.parametrize(
    ("where", "code", "message"),
    [
        ("tcp://127.0.0.1:1", ExitCode.ENVIRONMENT, "no Dask scheduler answers at tcp://127.0.0.1:1"),
        ("tcp://127.0.0.1", ExitCode.ENVIRONMENT, "missing port number"),
        ("none.json", ExitCode.ENVIRONMENT, "neither an address nor a file that a scheduler wrote"),
        ("host:8786", ExitCode.USAGE, "tcp://host:8786"),
        ("local:0", ExitCode.USAGE, "as local:2"),
    ],
)
def test_a_cluster_that_is_not_there(where: str, code: int, message: str, clips: Path, tmp_path: Path) -> None:
    done = run_command(clips, tmp_path / "s.zarr", "--scheduler", where)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_workers_it_says_how_to_start_some(clips: Path, tmp_path: Path) -> None:
    with dask(tmp_path) as cluster:
        done = run_command(clips, tmp_path / "s.zarr", "--scheduler", cluster.address, "--scheduler-wait", "2")
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert "no worker is connected" in done.stderr
    assert f"dask worker {cluster.address} --nthreads 1" in done.stderr


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_run(many: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    clips, expected = many
    store = tmp_path / "s.zarr"
    with dask(tmp_path) as cluster:
        cluster.worker()
        with started(clips, store, "--scheduler", cluster.address) as run:
            wait_until(lambda: staged(store) >= 2)
            cluster.processes[0].kill()
            _, err = run.communicate(timeout=200)
    assert run.returncode == ExitCode.ENVIRONMENT, err
    assert "no longer answers" in err
    assert run_command(clips, store).returncode == ExitCode.OK
    assert contents(store) == expected


def test_the_documented_slurm_cluster_asks_for_a_gpu(tmp_path: Path) -> None:
    """The script of its jobs, made by dask-jobqueue from what the documentation shows; none is submitted."""
    documented = (Path(__file__).resolve().parents[3] / "docs" / "cluster.md").read_text()
    code = documented.split("```python\n")[1].split("cluster.scale")[0]

    def job(code: str) -> list[str]:
        code += "print(cluster.job_script())\ncluster.close()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    script = job(code)
    assert {"#SBATCH -p gpu", "#SBATCH --gres=gpu:1", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=45G"} <= set(script)
    (worker,) = (line for line in script if "dask_worker tcp://" in line)
    assert " --nthreads 1 " in worker
    assert worker.endswith(" --resources GPU=1")
    skipped = 'job_directives_skip=["--mem"]', 'job_extra_directives=["--gres=gpu:1", "--mem-per-gpu=64G"]'
    assert all(f"`{argument}`" in documented for argument in skipped)
    other = code.replace('job_extra_directives=["--gres=gpu:1"]', ", ".join(skipped))
    assert [line for line in job(other) if line.startswith("#SBATCH --mem")] == ["#SBATCH --mem-per-gpu=64G"]


@pytest.mark.slow
@pytest.mark.timeout(60 * KILLS)
def test_many_kills_change_nothing(many: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """AQA_TEST_KILLS (100) workers are killed while they extract, wherever they are; runs repeat until that is done."""
    clips, expected = many
    draw = random.Random(0)
    kills = runs = 0
    with dask(tmp_path) as cluster:
        cluster.worker()
        cluster.worker()
        while kills < KILLS:
            store, runs = tmp_path / f"{runs}.zarr", runs + 1
            with started(clips, store, "--scheduler", cluster.address, "--scheduler-wait", "120") as run:
                talk = threading.Thread(target=run.communicate)
                talk.start()
                while run.poll() is None and kills < KILLS:
                    before = staged(store)
                    wait_until(lambda: run.poll() is not None or staged(store) > before, 120)  # noqa: B023
                    time.sleep(draw.uniform(0, 1))
                    if run.poll() is None and (pids := cluster.pids):
                        os.kill(draw.choice(pids), signal.SIGKILL)
                        kills += 1
                talk.join(300)
            assert run.returncode == ExitCode.OK
            assert contents(store) == expected
            print(f"{kills} kills, {runs} runs")
        wait_until(lambda: cluster.tasks == 0)
