"""Which workers of a Dask cluster are fit, and which GPU is whose: real clusters, with work of no weight."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from distributed import Client
from tests.clusters import dask, wait_until
from tests.shared.duties import kept, load, ready, sit, work

from aqa_shared.errors import EnvironmentFault, ExitCode
from aqa_shared.scheduler import connected
from aqa_shared.sessions import Ready, Trouble, leave, own_gpu, stop
from aqa_shared.workers import Duties, Workers


@pytest.fixture(autouse=True)
def _workers_find_duties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


def test_a_worker_takes_the_gpu_of_its_place_among_those_that_it_sees() -> None:
    assert [own_gpu(place, 4) for place in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert [own_gpu(place, 1) for place in range(2)] == ["cuda:0", "cuda:0"]  # of CUDA_VISIBLE_DEVICES, one each
    assert own_gpu(0, 0) == "cuda:0"  # which is then found not to be there


def test_workers_of_a_host_have_a_gpu_each_and_one_too_many_gets_no_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with dask(tmp_path) as cluster:
        for _ in range(3):
            cluster.worker("--resources", "GPU=1")
        cluster.worker()  # declares none
        two = on_two_gpus(cluster.client)
        assert two.device == "cuda"
        said = ""

        def one_too_many() -> bool:
            nonlocal said
            said += capsys.readouterr().err
            return "gets no work: its GPU is also that of worker tcp://127.0.0.1:" in " ".join(said.split())

        wait_until(lambda: two.step() is None and len(two.slots) == 2 and one_too_many())
        assert found(two) == {"cuda:0", "cuda:1"}
        assert "CUDA_VISIBLE_DEVICES=1 dask worker" in " ".join(said.split())
        # The one that takes the place of a killed worker takes its GPU.
        gone = next(iter(two.slots))
        os.kill(cluster.client.run(os.getpid, workers=[gone])[gone], signal.SIGKILL)
        wait_until(lambda: two.step() is None and gone not in two.slots)
        wait_until(lambda: two.step() is None and len(two.slots) == 2)
        assert found(two) == {"cuda:0", "cuda:1"}
        two.leave()


def test_a_worker_that_declares_several_gpus_takes_one_and_the_rest_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with dask(tmp_path) as cluster:
        cluster.worker("--nthreads", "2", "--resources", "GPU=2")
        one = on_two_gpus(cluster.client)
        wait_until(lambda: one.step() is None and one.slots)
        assert found(one) == {"cuda:0"}
        said = " ".join(capsys.readouterr().err.split())
        assert "computes on one GPU: it declares GPU=2, and a worker is one process, which takes one" in said
        start = f"dask worker {cluster.address} --nthreads 1 --nworkers 2 --resources GPU=1"
        assert f"start workers with `{start}`" in said
        # As it says: one for each.
        cluster.start("worker", *start.split()[2:], "--no-dashboard", "--local-directory", tmp_path)
        wait_until(lambda: one.step() is None and len(one.slots) == 2)  # of three on two GPUs
        assert found(one) == {"cuda:0", "cuda:1"}
        one.leave()


def test_a_worker_that_fails_again_and_again_gets_no_work_and_both_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with dask(tmp_path) as cluster:
        cluster.worker("--resources", "GPU=1")
        one = on_two_gpus(cluster.client)
        wait_until(lambda: one.step() is None and one.slots)
        (address,) = one.slots
        for _ in range(3):
            assert address in one.slots
            one.failed(address, Trouble("no space", "free some", ExitCode.ENVIRONMENT, unfit=False))
        assert not one.slots
        said = " ".join(capsys.readouterr().err.split())
        assert said.count("failed: no space; free some") == said.count("gets no work: no space; free some") == 1
        one.leave()


def test_a_worker_that_hangs_keeps_nobody_waiting(tmp_path: Path) -> None:
    with dask(tmp_path) as cluster:
        cluster.worker()
        (hanging,) = cluster.pids
        os.kill(hanging, signal.SIGSTOP)
        try:
            with connected(str(cluster.file)) as client:
                cluster.worker()
                one = Workers[str](
                    client, Duties(sit, work, "sit down"), lambda run, device: 2, where="-", device="cpu", wait=60
                )
                wait_until(lambda: one.step() is None and one.slots, 20)
                os.kill(hanging, signal.SIGCONT)
                wait_until(lambda: one.step() is None and len(one.slots) == 2, 20)
                one.leave()
        finally:
            os.kill(hanging, signal.SIGCONT)


def test_of_a_cluster_of_our_own_the_one_that_replaces_a_dead_worker_is_waited_for() -> None:
    with connected("local:2") as client:
        two = Workers[str](
            client, Duties(sit, work, "sit down"), lambda run, device: 2, where="local:2", device="cpu", wait=60
        )
        wait_until(lambda: two.step() is None and len(two.slots) == 2)
        aside, dies = two.slots
        two.failed(aside, Trouble("no space", "free some", ExitCode.ENVIRONMENT, unfit=True))
        os.kill(client.run(os.getpid, workers=[dies])[dies], signal.SIGKILL)
        wait_until(lambda: two._look() is None and dies not in two.slots)
        two._look()  # nobody is fit now, and the new one is not there yet
        wait_until(lambda: two.step() is None and len(two.slots) == 1)
        (last,) = two.slots
        two.failed(last, Trouble("no space", "free some", ExitCode.ENVIRONMENT, unfit=True))
        with pytest.raises(EnvironmentFault, match="can do the work"):  # at once: nobody else will come
            wait_until(two.step, 10)
        two.leave()


def test_a_scheduler_that_dies_before_a_result_is_fetched_is_gone(tmp_path: Path) -> None:
    with dask(tmp_path) as cluster:
        cluster.worker("--resources", "GPU=1")
        one = on_two_gpus(cluster.client)
        wait_until(lambda: one.step() is None and one.slots)
        one.submit("hello", ("hello",))
        (future,) = one._tasks
        wait_until(lambda: future.status == "finished")
        cluster.processes[0].kill()
        with pytest.raises(EnvironmentFault, match="no longer answers"):
            one.step()


def test_what_a_worker_loads_while_its_run_ends_does_not_stay(tmp_path: Path) -> None:
    with dask(tmp_path) as cluster:
        cluster.worker()
        one = Workers[str](
            cluster.client,
            Duties(load, work, "sit down"),
            lambda run, device: (run, tmp_path),
            where="-",
            device="cpu",
            wait=60,
        )
        wait_until(lambda: one.step() is None and (tmp_path / "begun").exists())
        one.leave()  # as after Ctrl-C
        (tmp_path / "loaded").touch()
        wait_until((tmp_path / "over").exists)
        assert list(cluster.client.run(kept).values()) == [{}]


def test_what_is_loaded_for_a_run_that_was_stopped_meanwhile_begins_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        loading = pool.submit(load, ("a run", tmp_path), {})
        wait_until((tmp_path / "begun").exists)
        stop("a run")
        (tmp_path / "loaded").touch()
        assert loading.result() == Ready()
    assert kept() == {"a run": True}
    leave("a run")
    assert kept() == {}
    assert load(("a run", tmp_path), {}) == Trouble(
        "run a run is over", "run the same command again", ExitCode.INTERNAL, unfit=True
    )


def on_two_gpus(client: Client) -> Workers[str]:
    """The cluster's workers, on a machine that has two."""
    return Workers[str](
        client, Duties(ready, work, "sit down"), lambda run, device: 2, where="-", device="auto", wait=60
    )


def found(workers: Workers[str]) -> set[str]:
    """The GPUs of the fit workers."""
    gpus = {}
    for worker in workers.slots:
        workers.submit(worker, ("hello",), frozenset([worker]))
    while len(gpus) < len(workers.slots):
        if (ended := workers.step()) is not None:
            text, gpus[ended.task] = ended.result
            assert text == "hello"
    return set(gpus.values())
