"""A secret that a workload has resolved is seen nowhere, wherever its code puts it.

Every hook prints it, warns of it and logs it, in the forms that it takes on its way, and one hook
after the other fails with it. Whatever was printed and stored is searched.
"""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.recorded import until

from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.runners.jobs import refuse_secrets
from ledgerbeam.batch.runs.draft import draft_run
from ledgerbeam.io.errors import SecretError

CANARY = "C4nary/Sécret+&?x1 9Z"
FORMS = {
    "plain": CANARY,
    "upper": CANARY.upper(),
    "lower": CANARY.lower(),
    "quoted": "C4nary%2FS%C3%A9cret%2B%26%3Fx1%209Z",
    "quoted in lower case": "c4nary%2fs%c3%a9cret%2b%26%3fx1%209z",
    "base64": "QzRuYXJ5L1PDqWNyZXQrJj94MSA5W",
    # Behind five bytes, the first seven characters and the last ones hold bits of others, too.
    "in a header of HTTP": base64.b64encode(f"user:{CANARY}".encode()).decode()[7:36],
}
HOOKS = (
    "none",
    "before",
    "total_names",
    "execute",
    "result_totals",
    "controls",
    "finish",
    "reports",
    "after",
    "exit_status",
    "cleanup",
    "exit before",
    "exit after",
    "thread",
)

WORKLOAD = '''
"""Puts its secret wherever somebody could see it."""

import base64
import datetime
import logging
import os
import sys
import threading
import warnings
from typing import Annotated
from urllib.parse import quote

import apache_beam as beam
import pyarrow as pa

import ledgerbeam as lb

ROWS = lb.Contract((lb.Column("account", pa.string()), lb.Column("id", pa.int64())))


class LeakingParameters(lb.FileParameters):
    rows: Annotated[str, lb.RowInput(ROWS, order="id", ids=("id",))]
    business_date: datetime.date
    key: lb.Secret


class Leaking(lb.KeyedProcess[LeakingParameters]):
    name = "leaking"
    key = ("account",)
    results = pa.schema([("count", pa.int64())])
    retry = lb.Retry(first_delay=0.01, longest_delay=0.01, tries=2)

    def leak(self, hook):
        value = self.parameters.key.resolve()
        forms = [
            value,
            value.upper(),
            value.lower(),
            quote(value, safe=""),
            quote(value, safe="").lower(),
            base64.b64encode(value.encode()).decode(),
            "Basic " + base64.b64encode(b"user:" + value.encode()).decode(),
        ]
        for form in forms:
            text = f"{hook}: {form} was here"
            print(text)
            print(text, file=sys.stderr)
            sys.stderr.write(text)
            sys.stderr.write("\\n")
            warnings.warn(text, stacklevel=2)
            logging.getLogger("leaking").warning(text)
        failing = os.environ["FAILING"]
        if failing == hook:
            raise RuntimeError(f"{hook} failed with " + " ".join(forms))
        if failing == f"exit {hook}":
            sys.exit(f"{hook} ends with " + " ".join(forms))
        if failing == "thread" and hook == "before":

            def fail():
                raise RuntimeError("a thread failed with " + " ".join(forms))

            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()

    def before(self):
        self.leak("before")

    def execute(self, component):
        self.leak("execute")
        return [{"count": 1}]

    def result_totals(self, results):
        self.leak("result_totals")
        return {}

    def controls(self, totals):
        self.leak("controls")
        return []

    def finish(self):
        self.leak("finish")
        return beam.Map(self.report)

    def report(self, table):
        self.leak("reports")
        return "report.txt", b"a report"

    def after(self, manifest):
        self.leak("after")

    def exit_status(self, manifest):
        self.leak("exit_status")
        return 0

    def cleanup(self):
        self.leak("cleanup")


if __name__ == "__main__":
    sys.exit(lb.main(Leaking))
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the workload, installed, and its input."""
    (tmp_path / "leaking.py").write_text(WORKLOAD)
    info = tmp_path / "leaking-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaking\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ledgerbeam.pipelines]\nleaking = leaking:Leaking\n")
    (tmp_path / "rows.csv").write_text("account,id\nA,1\nB,2\n")
    return tmp_path


def environment(folder: Path, failing: str) -> dict[str, str]:
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    given = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "FAILING": failing,
        "THE_KEY": CANARY,
        "LEDGERBEAM_STATE": str(folder / "state"),
        "LEDGERBEAM_REGISTRY": f"sqlite:///{folder}/registry.db",
    }
    return {**os.environ, **given}


def flags(folder: Path, *others: str) -> list[str]:
    return [
        f"--rows={folder}/rows.csv",
        "--business-date=2026-11-20",
        "--key=env:THE_KEY",
        f"--output={folder}/output",
        *others,
    ]


def check(folder: Path, printed: str) -> None:
    """Nothing of the secret is in what was printed, nor in any file."""
    written = {"what was printed": printed}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            written[str(path)] = path.read_bytes().decode(errors="replace")
    for place, text in written.items():
        for form, value in FORMS.items():
            where = text.find(value)
            assert where < 0, f"{form} in {place}: {text[max(0, where - 200) : where + 100]}"


def run(folder: Path, failing: str, *others: str) -> subprocess.CompletedProcess[str]:
    given = environment(folder, failing)
    del given["LEDGERBEAM_REGISTRY"]
    command = [sys.executable, str(folder / "leaking.py"), *flags(folder, *others)]
    return subprocess.run(
        command, env=given, cwd=folder, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.mark.slow
@pytest.mark.parametrize("failing", HOOKS)
def test_a_run_of_a_module(folder: Path, failing: str) -> None:
    done = run(folder, failing)
    check(folder, done.stdout + done.stderr)
    assert "before: *** was here" in done.stdout
    assert "before: *** was here" in done.stderr
    if failing in ("none", "total_names", "thread"):
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1, done.stderr
        assert "***" in done.stderr.splitlines()[-1] or failing == "execute"


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["none", "result_totals", "reports"])
def test_workers_in_processes_of_their_own(folder: Path, failing: str) -> None:
    """What a worker alone has resolved comes to the launcher in an error of Beam's."""
    workers = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    done = run(folder, failing, *workers)
    check(folder, done.stdout + done.stderr)
    assert done.returncode == (0 if failing == "none" else 1), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["none", "before", "execute", "controls", "cleanup"])
def test_a_run_on_record(folder: Path, failing: str) -> None:
    """Registry, logs of launcher and attempt, records and outcomes, and what verbs print."""

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; from ledgerbeam.batch.cli.app import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment(folder, failing),
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    submitted = command("submit", "leaking", *flags(folder))
    assert submitted.returncode == 0, submitted.stderr
    waited = command("wait", "leaking/2026-11-20", "--json", "--timeout=200")
    expected = 0 if failing in ("none", "cleanup") else 2
    printed = submitted.stdout + submitted.stderr + waited.stdout + waited.stderr
    for verb in ("get", "audit", "components", "list"):
        name = [] if verb == "list" else ["leaking/2026-11-20"]
        for form in ([], ["--json"]):
            shown = command(verb, *name, *form)
            printed += shown.stdout + shown.stderr
    (log,) = (folder / "state" / "logs").iterdir()
    until(lambda: "*** was here" in log.read_text(), "the log")
    check(folder, printed)
    assert (waited.returncode == 0) == (expected == 0), waited.stderr


@pytest.mark.parametrize(
    ("flag", "variable"),
    [
        ("--s3_secret_access_key=hidden", "AWS_SECRET_ACCESS_KEY"),
        ("--s3_sec=hidden", "AWS_SECRET_ACCESS_KEY"),
        ("--s3_session_token=hidden", "AWS_SESSION_TOKEN"),
        ("--azure_conn=hidden", "AZURE_STORAGE_CONNECTION_STRING"),
        ("--my_runner_password=hidden", "a variable"),
        ("--api-key=hidden", "a variable"),
    ],
)
def test_beam_flags_that_hold_secrets_are_refused(flag: str, variable: str) -> None:
    for flags_ in ([flag], flag.split("=")):
        with pytest.raises(SecretError, match=variable) as raised:
            draft_run("delivery-marking", {}, ["--runner=FlinkRunner", *flags_], "me", utc_now())
        assert "hidden" not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_other_flags_are_taken() -> None:
    refuse_secrets(
        [
            "--runner=FlinkRunner",
            "--s3_access_key_id=AKIA",
            "--s3_region_name=eu-central-1",
            "--s3_verify=true",
            "--gcp_oauth_scopes=x",
            "--dataflow_kms_key=projects/p",
            "--experiments=use_portable_job_submission",
            "--azure_managed_identity_client_id=x",
        ]
    )
