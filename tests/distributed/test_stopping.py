"""Requests to stop: Google Cloud's notices, and machines that are not there."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from lclm_jax.distributed import stopping
from lclm_jax.distributed.stopping import stop_requests

pytestmark = pytest.mark.newest


class Metadata(BaseHTTPRequestHandler):
    """A metadata server; its answers are pairs: at once, and after waiting for a change."""

    answers: ClassVar = {"maintenance-event": ("NONE", "NONE"), "preempted": ("FALSE", "FALSE")}

    def do_GET(self):
        name, _, waits = self.path.rpartition("/")[2].partition("?")
        if (
            self.headers["Metadata-Flavor"] != "Google"
            or "/computeMetadata/v1/instance/" not in self.path
        ):
            self.send_error(403)
            return
        if waits:
            time.sleep(0.2)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.answers[name][bool(waits)].encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    with HTTPServer(("127.0.0.1", 0), Metadata) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{serving.server_port}")
        yield
        serving.shutdown()


@pytest.mark.parametrize(
    ("name", "notice"),
    [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")],
)
@pytest.mark.parametrize("later", [True, False])
def test_a_notice_asks_to_stop(server, monkeypatch, name, notice, later):
    well = Metadata.answers[name][0]
    monkeypatch.setattr(
        Metadata, "answers", Metadata.answers | {name: (well if later else notice, notice)}
    )
    with stop_requests() as stop:
        deadline = time.monotonic() + 20
        while not stop.asked and time.monotonic() < deadline:
            time.sleep(0.02)
        assert stop.asked and stop.reason == f"{name}: {notice}"


def test_a_server_that_goes_away_is_not_asked_without_pause(server, monkeypatch):
    asked, answer = [], stopping._query
    monkeypatch.setattr(
        stopping,
        "_query",
        lambda *question: asked.append(1) or (answer(*question) if len(asked) < 3 else None),
    )
    with stop_requests() as stop:
        time.sleep(1.5)
        assert 3 <= len(asked) <= 4 and not stop.asked


def test_a_migration_stops_nothing(server, monkeypatch):
    monkeypatch.setattr(
        Metadata,
        "answers",
        Metadata.answers | {"maintenance-event": ("NONE", "MIGRATE_ON_HOST_MAINTENANCE")},
    )
    with stop_requests() as stop:
        time.sleep(0.6)
        assert not stop.asked


def test_no_notice_no_request(server):
    with stop_requests() as stop:
        time.sleep(0.6)
        assert not stop.asked


def test_a_machine_elsewhere_is_not_asked_again(monkeypatch):
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    before = threading.active_count()
    with stop_requests() as stop:
        deadline = time.monotonic() + 20
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert threading.active_count() == before and not stop.asked
