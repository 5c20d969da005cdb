"""The watchdog ends a run that makes no progress, and no slow or finished run."""

import subprocess
import sys
import threading
import time

import pytest

from lclm_jax.training.watchdog import EXIT_STATUS, watchdog


def test_no_sign_of_life_is_the_end():
    ended = threading.Event()
    timeouts = []
    with watchdog(0.2, lambda seconds: (timeouts.append(seconds), ended.set())) as alive:
        alive()
        assert ended.wait(30)
    assert timeouts == [pytest.approx(0.2)]


@pytest.mark.parametrize("seconds", [1.0, None])
def test_a_slow_run_goes_on(seconds):
    ended = threading.Event()
    with watchdog(seconds, lambda _: ended.set()) as alive:
        for _ in range(8):
            time.sleep(0.2)
            alive()
    assert not ended.wait(1.5), "what is over is not watched"


def test_the_end_says_where_every_thread_stood():
    code = (
        "import time\nfrom lclm_jax.training.watchdog import watchdog\n"
        "def stuck():\n    time.sleep(60)\nwith watchdog(0.2):\n    stuck()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=50
    )
    assert done.returncode == EXIT_STATUS
    assert "in stuck" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: no step was finished in 0 s (run.step_timeout)"
    )
