"""A Flink cluster on this machine: a JobManager, two TaskManagers, and a pool of Python workers.

`make flink-test` fetches what it needs. The workers have an environment of their own, into which
the project is installed from its sdist; they inherit this process's variables.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".cache" / "flink"
SLOTS = 2
"""Of each TaskManager."""

_OPENED = (
    *("lang", "lang.reflect", "io", "net", "nio", "text", "time", "util"),
    *("util.concurrent", "util.concurrent.atomic", "util.concurrent.locks"),
)
_JAVA = [
    "java",
    # Flink reflects on the JDK's own classes; these are the exceptions that its scripts make too.
    *(f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENED),
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-exports=java.base/sun.net.util=ALL-UNNAMED",
]
_SECONDS = 90


class FlinkCluster:
    """A cluster that goes on until it is closed.

    Attributes:
        pids: of its processes, by name.
        url: of its REST endpoint.
        master: the same as `--flink_master` has it.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        assert (HOME / "stamp").exists(), f"{HOME} isn't there: make flink-test makes it"
        self._folder = folder
        self._stack = stack
        self.pids: dict[str, int] = {}
        rest, rpc, self._pool_port = _free_ports(3)
        self.master = f"localhost:{rest}"
        self.url = f"http://{self.master}"
        (folder / "log4j.properties").write_text(_LOG4J)
        (folder / "config.yaml").write_text(_CONFIG.format(rest=rest, rpc=rpc, slots=SLOTS))
        self._start(
            "jobmanager", "entrypoint.StandaloneSessionClusterEntrypoint", "-Xmx1g", log="WARN"
        )
        self._task_managers = {
            name: self._start_task_manager(name) for name in ("manager-1", "manager-2")
        }
        self._start_pool()
        self._await(lambda: len(self.free_slots()) == len(self._task_managers), "TaskManagers")

    def flags(self, parallelism: int = 2, *more: str) -> list[str]:
        """Flags by which a pipeline runs here, and more of them."""
        return [
            "--runner=FlinkRunner",
            f"--flink_master={self.master}",
            "--flink_submit_uber_jar",
            f"--flink_job_server_jar={HOME / 'jar' / 'job-server.jar'}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{self._pool_port}",
            "--environment_cache_millis=30000",
            "--faster_copy",
            f"--parallelism={parallelism}",
            *more,
        ]

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds that each process of the cluster has taken, its own children included."""
        return {name: _cpu_seconds(psutil.Process(pid)) for name, pid in self.pids.items()}

    def get(self, path: str) -> Any:
        answer = requests.get(f"{self.url}{path}", timeout=10)
        answer.raise_for_status()
        return answer.json()

    def states(self) -> dict[str, str]:
        """The state of each job, by name."""
        return {job["name"]: job["state"] for job in self.get("/jobs/overview")["jobs"]}

    def jars(self) -> list[str]:
        """Jars of jobs that are kept."""
        return [jar["id"] for jar in self.get("/jars")["files"]]

    def free_slots(self) -> dict[str, int]:
        """Slots that no job has, by TaskManager."""
        try:
            managers = self.get("/taskmanagers")["taskmanagers"]
        except requests.RequestException:
            return {}
        return {manager["id"]: manager["freeSlots"] for manager in managers}

    def kill_busy_task_manager(self) -> str:
        """Kill -9 the one that has most to do; gives its name."""
        name = min(self.free_slots().items(), key=lambda item: item[1])[0]
        process = self._task_managers[name]
        process.kill()
        process.wait()
        return name

    def restart_task_manager(self, name: str) -> None:
        """Start one again, and wait until the cluster is whole and idle."""
        self._task_managers[name] = self._start_task_manager(name)
        self.await_idle()

    def await_idle(self) -> None:
        self._await(lambda: list(self.free_slots().values()) == [SLOTS, SLOTS], "free slots")

    def _start_task_manager(self, name: str) -> "subprocess.Popen[bytes]":
        return self._start(
            name,
            "taskexecutor.TaskManagerRunner",
            *("-Xmx768m", "-XX:MaxDirectMemorySize=1g"),
            options=(f"-Dtaskmanager.resource-id={name}",),
        )

    def _start(
        self, name: str, main: str, *java: str, options: tuple[str, ...] = (), log: str = "INFO"
    ) -> "subprocess.Popen[bytes]":
        command = [
            *_JAVA,
            *java,
            f"-Dlog4j.configurationFile={(self._folder / 'log4j.properties').as_uri()}",
            f"-Dlevel={log}",
            *("-cp", str(HOME / "lib" / "*")),
            f"org.apache.flink.runtime.{main}",
            f"--configDir={self._folder}",
            *options,
        ]
        return self._run(name, command, os.environ)

    def _start_pool(self) -> None:
        path = os.pathsep.join([str(HOME / "workers" / "bin"), os.environ["PATH"]])
        pool = [
            *(str(HOME / "workers" / "bin" / "python"), "-P"),
            str(ROOT / "tests" / "support" / "flink_pool.py"),
            f"--service_port={self._pool_port}",
        ]
        # It starts each worker as `python`.
        self._run("pool", pool, {**os.environ, "PATH": path})

    def _run(self, name: str, command: list[str], environment: Any) -> "subprocess.Popen[bytes]":
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.pids[name] = process.pid
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        return process

    def _await(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"no {what}: {self.told()}"
            time.sleep(0.2)

    def told(self) -> str:
        """The ends of the logs."""
        logs = sorted(self._folder.glob("*.log"))
        return "\n".join(f"{log.name}\n{log.read_text()[-3000:]}" for log in logs)


@contextmanager
def flink_cluster(folder: Path) -> Iterator[FlinkCluster]:
    """A cluster whose workers have the project as its sdist holds it."""
    install_workers(folder)
    with ExitStack() as stack:
        yield FlinkCluster(folder, stack)


def install_workers(folder: Path) -> None:
    """Install the project's sdist, as it is now, where workers run."""
    build = [sys.executable, "-m", "build", "--sdist", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    pip = [str(HOME / "workers" / "bin" / "pip"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--force-reinstall", str(sdist)], check=True)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    ended = times.children_user + times.children_system
    own: float = times.user + times.system + ended
    return own + sum(map(_cpu_seconds, process.children()))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [listener.getsockname()[1] for listener in listeners]


_CONFIG = """\
jobmanager.rpc.address: localhost
jobmanager.rpc.port: {rpc}
jobmanager.bind-host: localhost
rest.address: localhost
rest.bind-address: localhost
rest.port: {rest}
jobmanager.memory.process.size: 1600m
taskmanager.bind-host: localhost
taskmanager.host: localhost
taskmanager.numberOfTaskSlots: {slots}
# Flink's scripts work these out from the size of the process; without them they are all given.
taskmanager.cpu.cores: {slots}
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 128m
taskmanager.memory.task.heap.size: 640m
taskmanager.memory.task.off-heap.size: 256m
# Each shuffle of a batch job takes 16 MB, and a workload has about twenty in a slot.
taskmanager.memory.network.min: 512m
taskmanager.memory.network.max: 512m
taskmanager.memory.managed.size: 256m
taskmanager.memory.jvm-metaspace.size: 256m
taskmanager.memory.jvm-overhead.min: 192m
taskmanager.memory.jvm-overhead.max: 192m
# A TaskManager that is killed is missed after seconds, not after the usual 50.
heartbeat.interval: 1000
heartbeat.timeout: 10000
"""

_LOG4J = """\
rootLogger.level = ${sys:level}
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %-5p %c{1} - %m%n
"""
