"""Intervals of a sweep: how often workers give a sign of life, and how long others wait for it."""

from dataclasses import dataclass

from lclm_jax.config import ConfigError
from lclm_jax.config.settings import Positive, Settings


@dataclass(frozen=True)
class Intervals(Settings):
    """Seconds between the actions of workers."""

    heartbeat: Positive = 10  # from one heartbeat of an owner to its next
    expiry: Positive = 30  # from an owner's last heartbeat until its training ends by itself
    stale: Positive = 45  # without a heartbeat, until others may claim the cell
    poll: Positive = 5  # from one look at cells that others train to the next
    grace: Positive = 60  # from SIGTERM until training is killed
    retry: Positive = 60  # from a failed attempt until its worker tries the cell again

    def __post_init__(self):
        super().__post_init__()
        if not self.heartbeat < self.expiry < self.stale:
            raise ConfigError(
                "expected heartbeat < expiry < stale, so that training ends before others claim "
                f"the cell, got {self.heartbeat}, {self.expiry} and {self.stale} s"
            )
