"""Jobs of engines: their names, what their failures come to, and how a dead driver is survived."""

import datetime
import re
import subprocess
from collections.abc import Iterator

import apache_beam as beam
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.dataflow_service import PROJECT, REGION, DataflowService, dataflow_service

from ledgerbeam.batch.launch import driver_job
from ledgerbeam.batch.launch.driver import AttemptRequest
from ledgerbeam.batch.launch.driver_job import StartedJob
from ledgerbeam.batch.launch.job import Job, JobId, JobResult
from ledgerbeam.batch.runners.beam import make_pipeline, run_pipeline
from ledgerbeam.batch.runners.dataflow import DataflowJob
from ledgerbeam.batch.runners.failures import error_of
from ledgerbeam.batch.runners.jobs import runner_job
from ledgerbeam.batch.runners.names import labels_of_job, name_of_job
from ledgerbeam.io import errors
from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.commit.records import AttemptRecord
from ledgerbeam.io.errors import AttemptLostError, InputError, RunnerUnavailableError, UserError
from ledgerbeam.io.machine import ProcessId


def user_errors() -> list[type[UserError]]:
    """The classes of the tree."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, UserError)]


def _raise(_: object) -> None:
    raise InputError("a.csv: cut off", file="a.csv", row=7)


class _ReadNothing(beam.PTransform):
    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        return pbegin | beam.Create([None]) | "Read" >> beam.Map(_raise)


FLINK = ["--runner=FlinkRunner", "--flink_master=localhost:1"]


def attempt(number: int, uri: str, instance: str = "2026-11-20") -> Attempt:
    record = AttemptRecord(
        process="delivery-marking",
        instance=instance,
        number=number,
        started_at=datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC),
        code_version="1",
        parameters={},
        inputs=[],
        shards=1,
        fingerprint="f",
        run="5c0f",
    )
    return Attempt(uri, record)


class TestNames:
    @given(
        st.text(min_size=1, max_size=80), st.integers(1, 10**6), st.text(min_size=1, max_size=20)
    )
    def test_a_name_is_a_dns_label(self, instance: str, number: int, uri: str) -> None:
        name = name_of_job(attempt(number, f"/{uri}", instance))
        assert re.fullmatch(r"[a-z][a-z0-9-]{0,61}[a-z0-9]", name)

    def test_no_two_attempts_share_one(self) -> None:
        long = "2026-11-20-" + "x" * 80
        attempts = [
            attempt(number, uri, instance)
            for number in (1, 2, 11)
            for uri in ("/a", "gs://b/a")
            for instance in ("2026-11-20", long)
        ]
        # Where an instance is says which it is.
        names = {name_of_job(each) for each in attempts}
        assert len(names) == len(attempts)

    def test_labels_are_what_dataflow_takes(self) -> None:
        labels = labels_of_job(attempt(2, "/a", "2026-11-20 Bank.North"))
        assert labels == [
            "ledgerbeam-process=delivery-marking",
            "ledgerbeam-instance=2026-11-20-bank-north",
            "ledgerbeam-attempt=2",
            "ledgerbeam-run=5c0f",
        ]

    def test_a_name_of_ones_own_is_refused(self) -> None:
        with pytest.raises(UserError, match="--job_name: jobs are named by their instance"):
            make_pipeline(["--job_name=mine"])


class TestFailures:
    def test_a_line_for_the_user_is_told(self) -> None:
        failure = (
            "java.lang.RuntimeException: Error received from SDK harness: Traceback (most recent "
            "call last):\\n  File x\\nledgerbeam.io.errors.UserError: nothing published: 1 of 3 "
            "components failed [while running 'counting/Publish']\\n"
        )
        error = error_of(failure)
        assert str(error) == "nothing published: 1 of 3 components failed"
        assert not isinstance(error, AttemptLostError)

    def test_a_defect_is_no_loss(self) -> None:
        failure = "Traceback (most recent call last):\n  File x\nZeroDivisionError: by zero\n"
        error = error_of(failure)
        assert "ZeroDivisionError: by zero" in str(error)
        assert not isinstance(error, AttemptLostError)

    @pytest.mark.parametrize("kind", user_errors())
    def test_a_text_is_enough_to_find_the_class_and_the_code(self, kind: type[UserError]) -> None:
        failure = (
            "RuntimeError: Traceback (most recent call last):\n  File x\n"
            f"ledgerbeam.io.errors.{kind.__name__}: a: line [while running 'counting/Read']\n"
        )
        error = error_of(failure)
        assert type(error) is kind
        assert (str(error), error.code, error.attributes) == ("a: line", kind.code, {})

    def test_so_it_is_for_a_workloads_own_class(self) -> None:
        class RateError(InputError):
            def __init__(self, loan: str, rate: int) -> None:
                super().__init__(f"loan {loan}: rate {rate}", value=rate)

        error = error_of("rates.RateError: loan A1: rate -2 [while running 'Execute']")
        assert type(error) is RateError
        assert (str(error), error.code) == ("loan A1: rate -2", "invalid-input")

    def test_a_local_run_keeps_the_attributes(self) -> None:
        pipeline = make_pipeline([])
        with pytest.raises(InputError) as raised:
            run_pipeline(pipeline, "read", _ReadNothing())
        assert str(raised.value) == "a.csv: cut off"
        assert raised.value.attributes == {"file": "a.csv", "row": 7}

    def test_what_befalls_the_engine_is_a_loss(self) -> None:
        error = error_of("TaskManager with id manager-1 is no longer reachable.\n\tat org.apache")
        assert isinstance(error, AttemptLostError)
        assert str(error).endswith("TaskManager with id manager-1 is no longer reachable.")


class TestJobs:
    def test_ids_are_kept_as_text(self) -> None:
        driver = ProcessId("host", 12, "3.50")
        for id_ in (JobId(driver), JobId(driver, "delivery-marking-1")):
            assert JobId.parse(str(id_)) == id_
        assert str(JobId(driver)) == str(driver)

    def test_only_an_engines_job_can_be_seen_from_elsewhere(self) -> None:
        elsewhere = ProcessId("another-host", 12, "3.50")
        assert not JobId(elsewhere).can_be_seen
        assert JobId(elsewhere, "delivery-marking-1").can_be_seen

    @pytest.mark.parametrize("master", ["[local]", "[auto]"])
    def test_a_cluster_of_the_drivers_own_ends_with_it(self, master: str) -> None:
        assert runner_job(["--runner=FlinkRunner", f"--flink_master={master}"], "a") is None
        assert runner_job([], "a") is None

    def test_a_driver_that_does_not_answer_is_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(driver_job, "START_SECONDS", 0.5)
        request = AttemptRequest(
            process="counting",
            parameters={},
            beam_flags=[],
            run="r",
            launch=1,
            retry_failed=False,
        )
        silent = subprocess.Popen(
            ["sleep", "1000"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        job = StartedJob(request, {}, "", silent)
        while job.is_alive():
            job.poll(0.1, lambda _: pytest.fail("it has told its job"))
        result = job.result()
        job.detach()
        assert (result.error, result.code) == ("", "attempt-lost")
        assert result.lost == "its process did not answer within 0.5 s of its start"
        assert silent.wait() < 0

    def test_a_job_goes_on_while_its_engine_does_not_answer(self) -> None:
        job = Job(JobId(ProcessId("another-host", 12, "3.50"), "a"), FLINK)
        assert job.is_alive()
        assert job.result() == JobResult()

    def test_an_engine_that_is_not_there_is_told_with_its_address(self) -> None:
        job = runner_job(FLINK, "a")
        assert job is not None
        with pytest.raises(RunnerUnavailableError, match="http://localhost:1/jobs/overview"):
            job.is_alive()


class TestDataflow:
    @pytest.fixture
    def service(self) -> Iterator[DataflowService]:
        with dataflow_service() as service:
            yield service

    def job(self, service: DataflowService, name: str) -> DataflowJob:
        job = DataflowJob(PROJECT, REGION, name, service.url, auth=False)
        job.poll_seconds = 0.01
        return job

    def test_a_job_by_its_name(self, service: DataflowService) -> None:
        for name in ("a-1", "a-2"):
            assert service.answer("POST", self.path(), f'{{"name": "{name}"}}'.encode())[0] == 200
        first, second = self.job(service, "a-1"), self.job(service, "a-2")
        assert first.is_alive()
        first.cancel()
        assert (service.state("a-1"), service.state("a-2")) == ("CANCELLED", "RUNNING")
        assert not first.is_alive()
        assert second.is_alive()
        first.cancel()  # has ended: nothing to do
        service.move("a-2", "FAILED", "one", "two")
        assert second.failure() == "one\ntwo"
        assert first.failure() == ""

    @pytest.mark.parametrize(
        ("messages", "result"),
        [
            (
                ["zone out of resources"],
                JobResult(
                    lost="the runner's job failed: zone out of resources",
                    code=AttemptLostError.code,
                ),
            ),
            (
                ["ledgerbeam.io.errors.InputError: shards: 0 are none"],
                JobResult(error="shards: 0 are none", code=InputError.code),
            ),
        ],
    )
    def test_a_job_whose_driver_is_gone_ended_as_its_engine_says(
        self, service: DataflowService, messages: list[str], result: JobResult
    ) -> None:
        assert service.answer("POST", self.path(), b'{"name": "a-1"}')[0] == 200
        flags = [
            "--runner=DataflowRunner",
            f"--project={PROJECT}",
            f"--region={REGION}",
            f"--dataflow_endpoint={service.url}",
            "--no_auth",
        ]
        job = Job(JobId(ProcessId("another-host", 12, "3.50"), "a-1"), flags)
        assert job.is_alive()
        service.move("a-1", "FAILED", *messages)
        assert job.result() == result
        assert not job.has_published()

    def test_an_unknown_job_has_ended(self, service: DataflowService) -> None:
        job = self.job(service, "never-submitted")
        assert not job.is_alive()
        job.cancel()
        assert job.failure() == ""

    def path(self) -> str:
        return f"/v1b3/projects/{PROJECT}/locations/{REGION}/jobs"
