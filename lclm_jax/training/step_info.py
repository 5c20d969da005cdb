"""The information that the hooks of the training loop get after every step."""

from collections.abc import Callable
from dataclasses import dataclass

from lclm_jax.training.stage import DataPosition, StageRun
from lclm_jax.training.state import TrainState
from lclm_jax.training.step import Metrics


@dataclass(frozen=True)
class StepInfo:
    """A step that the devices have begun, while the step before it is complete."""

    stage_run: StageRun
    step: int  # within the stage, from 1
    state: TrainState  # after the step; its arrays are given up to the next step
    metrics: Metrics  # on the devices: reading them waits for the end of the step
    data_position: DataPosition  # before the step's batch
    seconds: float  # since the step before had begun, including the wait for its end
    waited: float  # those of the seconds spent waiting for the batch
    stopping: bool  # a stop was requested: the run saves and ends after this step

    @property
    def last(self) -> bool:
        """True for the last step of the stage."""
        return self.step == self.stage_run.stage.steps

    def due(self, every: int) -> bool:
        """Return True every `every` steps of the stage, and at its last one."""
        return self.last or self.step % every == 0


Hook = Callable[[StepInfo], None]
