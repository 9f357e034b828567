"""A real MLflow server, to be stopped and killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


class Server:
    """A real ``mlflow server`` on a free port, with its database and artifacts in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        words = ["server", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--port", str(self.port)]
        words += ["--artifacts-destination", str(self.folder / "server"), "--workers", "1", "--host", "127.0.0.1"]
        own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
        own |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words], stdout=log, stderr=log, env=own, start_new_session=True
            )
        end = time.monotonic() + 120
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError((self.folder / "server.log").read_text())

    def signal(self, number: int) -> None:
        """Sends a signal to it and to what it has started."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Ends it as a machine that fails does."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
