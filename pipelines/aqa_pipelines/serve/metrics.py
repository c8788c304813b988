"""What /metrics says, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from aqa_pipelines.serve.device import Device
from aqa_pipelines.serve.jobs import ENDED, Job, Jobs


class Metrics:
    """Counters of one service, and gauges that are read when they are asked for."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.ended = Counter(
            "aqa_jobs_ended",
            "Jobs by how they ended, and whose fault a failure was.",
            ["state", "fault"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "aqa_job_seconds",
            "From the moment a device took a job to its commit.",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000),
            registry=self.registry,
        )
        self.refused = Counter(
            "aqa_requests_refused", "Submissions by the status they got.", ["status"], registry=self.registry
        )
        self.uploaded = Counter("aqa_upload_bytes", "Bytes of uploads received.", registry=self.registry)
        ProcessCollector(registry=self.registry)

    def job_ended(self, job: Job) -> None:
        self.ended.labels(job.state, job.fault).inc()
        if job.state == "done":
            self.seconds.observe(job.seconds)

    def observe(self, jobs: Jobs, devices: Sequence[Device]) -> None:
        """Show these, too."""
        self.registry.register(_Gauges(jobs, devices))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Gauges:
    def __init__(self, jobs: Jobs, devices: Sequence[Device]) -> None:
        self.jobs, self.devices = jobs, devices

    def collect(self) -> Iterator[Metric]:
        with self.jobs.lock:
            states = Tally(job.state for job in self.jobs.known.values() if job.state not in ENDED)
        now = GaugeMetricFamily("aqa_jobs", "Jobs that have not ended, by state.", labels=["state"])
        for state in ("queued", "running", "committed"):
            now.add_metric([state], states[state])
        yield now
        yield GaugeMetricFamily("aqa_queue_limit", "Jobs that may wait.", self.jobs.limit)
        died = "Extraction processes that died while they had jobs."
        yield CounterMetricFamily("aqa_extraction_deaths", died, self.jobs.deaths)
        up = GaugeMetricFamily(
            "aqa_device_ready", "1 where the networks are loaded and jobs are taken.", labels=["device"]
        )
        for device in self.devices:
            up.add_metric([device.name], float(device.ready))
        yield up
