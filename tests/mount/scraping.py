"""A real Prometheus, started by a test: on a free port, with storage of its own, ended by its pid."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

TIMEOUT_S = 30

_CONFIG = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs: [{{job_name: aiofs, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
"""


class _Handler(BaseHTTPRequestHandler):
    """Answers every GET with the file as it is now."""

    file: Path

    def do_GET(self) -> None:
        content = self.file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test's output is for the test."""


class Prometheus:
    """A server that scrapes one target every second."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **words: str) -> Any:
        """The `data` of an answer of its HTTP API."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(words)}"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return json.load(answer)["data"]

    def answers(self) -> bool:
        """It has started."""
        try:
            self.ask("query", query="1")
        except OSError:
            return False
        return True

    def has_scraped(self) -> bool:
        """Its target has answered, or failed to, once."""
        return any(target["health"] != "unknown" for target in self.ask("targets")["activeTargets"])

    def target(self) -> dict[str, Any]:
        """The state of its target: `health` up, down or unknown; `lastError`."""
        [target] = self.ask("targets")["activeTargets"]
        return dict(target)

    def value(self, query: str) -> float | None:
        """The one value that a query gives; None when it gives none."""
        found = self.ask("query", query=query)["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None


@contextmanager
def scraped(file: Path, directory: Path) -> Iterator[Prometheus]:
    """A Prometheus that has scraped `file` once at least; its storage and log go to `directory`."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not there: scripts/test borrows it, or apt-get install prometheus")
    handler = type("Handler", (_Handler,), {"file": file})
    with HTTPServer(("127.0.0.1", 0), handler) as target:
        threading.Thread(target=target.serve_forever, daemon=True).start()
        config = directory / "prometheus.yml"
        config.write_text(_CONFIG.format(port=target.server_port))
        port = _free_port()
        with (directory / "prometheus.log").open("w") as log:
            process = subprocess.Popen(
                [
                    program,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={directory / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            prometheus = Prometheus(port)
            wait_until(lambda: process.poll() is not None or prometheus.answers(), TIMEOUT_S)
            assert process.poll() is None, (directory / "prometheus.log").read_text()
            wait_until(prometheus.has_scraped, TIMEOUT_S)
            yield prometheus
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)
            target.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
