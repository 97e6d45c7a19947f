"""Spark on this machine, for tests: its settings, and a standalone cluster of two workers."""

import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

OLDEST_JAVA = 17
"""Spark 4 does not start on older versions."""
# a query runs once: the optimizing compiler would take more time than it saves
_JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
_START_SECONDS = 300


@cache
def why_not() -> str | None:
    """Reason why Spark cannot run here, or None."""
    remedy = f"Spark needs Java {OLDEST_JAVA} or later: apt-get install default-jre-headless"
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    if java is None:
        return remedy
    printed = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', printed)
    return None if found and int(found[1]) >= OLDEST_JAVA else f"{remedy}, or set JAVA_HOME; {java} is older"


def settings(folder: Path) -> dict[str, str]:
    """Environment of a driver, which writes what its tasks did to `folder`."""
    events, configuration = folder / "events", folder / "conf"
    events.mkdir()
    configuration.mkdir()
    options = {
        "spark.driver.extraJavaOptions": _JAVA_OPTIONS,
        "spark.executor.extraJavaOptions": _JAVA_OPTIONS,
        "spark.executor.memory": "512m",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": f"file://{events}",
        "spark.eventLog.rolling.enabled": "false",
        "spark.eventLog.compress": "false",
    }
    lines = (f"{key} {value}\n" for key, value in options.items())
    (configuration / "spark-defaults.conf").write_text("".join(lines))
    return {
        "SPARK_CONF_DIR": str(configuration),
        "SPARK_LOCAL_IP": "127.0.0.1",
        # no task runs Python
        "PYSPARK_PYTHON": "no-python-here",
    }


def tasks_by_executor(folder: Path) -> Counter[str]:
    """Number of finished tasks of each executor, of a driver with the `settings` of `folder`."""
    (log,) = (folder / "events").iterdir()
    events = map(json.loads, log.read_text().splitlines())
    return Counter(e["Task Info"]["Executor ID"] for e in events if e["Event"] == "SparkListenerTaskEnd")


@contextmanager
def standalone_cluster(python: Path, folder: Path) -> Iterator[str]:
    """A master and two workers of one core each; yields the master's address. `folder` gets their logs."""
    locate = "from importlib.util import find_spec; print(find_spec('pyspark').submodule_search_locations[0])"
    home = subprocess.run([python, "-c", locate], capture_output=True, text=True, check=True).stdout.strip()
    environment = os.environ | {
        "SPARK_HOME": home,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "512m",
        "SPARK_DAEMON_JAVA_OPTS": _JAVA_OPTIONS,
    }
    processes: list[subprocess.Popen] = []

    def start(role: str, arguments: list[str], ready: str) -> str:
        """Starts a master or worker and waits until its log matches `ready`. Returns the match."""
        log = folder / f"{role}{len(processes)}.log"
        command = [f"{home}/bin/spark-class", f"org.apache.spark.deploy.{role}.{role.capitalize()}"]
        command += ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0", *arguments]
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        processes.append(process)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if found := re.search(ready, log.read_text()):
                return found[0]
            time.sleep(0.1)
        raise AssertionError(f"the {role} did not start: {log.read_text()[-2000:]}")

    try:
        master = start("master", [], r"spark://127\.0\.0\.1:\d+")
        for number in range(2):
            work = ["--cores", "1", "--memory", "1g", "--work-dir", str(folder / f"work{number}"), master]
            start("worker", work, "Successfully registered with master")
        yield master
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(60)
