"""Any interleaving of workers that are suspended, killed and stopped, on simulated machines."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.sweeps.workers.failures import read_failures
from lclm_jax.sweeps.workers.intervals import Intervals
from lclm_jax.sweeps.workers.layout import FAILURE, RESULT, cell_directory
from tests.support.sweep_simulation import DIRECTORY, Machine, World, simulated

CELLS = ["a", "b"]
MAX_ATTEMPTS = 3
HOUR = 3600.0
FUZZ = settings(max_examples=int(os.environ.get("LCLM_FUZZ", "20")), deadline=None)

INTERACTIONS = st.sampled_from(["create", "replace", "read", "names", "start", "clock"])
# Which machine does what. Long waits and pauses in the middle of an operation matter most.
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("steps"), st.integers(1, 12)),
        st.tuples(st.just("advance"), st.sampled_from([0.5, 3.0, 10.0, 29.0, 31.0, 46.0])),
        st.tuples(st.just("run fairly"), st.sampled_from([2.0, 11.0, 50.0])),
        st.tuples(st.sampled_from(["suspend before", "freeze before"]), INTERACTIONS),
        st.tuples(st.sampled_from(["suspend", "freeze", "resume", "resume", "kill", "stop"])),
        st.tuples(st.just("fill or empty the disk")),
    ),
    max_size=60,
)
MACHINES = st.lists(st.integers(0, 2), min_size=60, max_size=60)
TRAININGS = st.lists(
    st.tuples(st.sampled_from(["finished", "failed"]), st.sampled_from([0.5, 20.0, 120.0])),
    min_size=1,
    max_size=6,
)
OFFSETS = st.tuples(*[st.sampled_from([0.0, 5 * HOUR, -7 * HOUR])] * 3)


def act(world: World, machine: Machine, action: str, *choice):
    if action == "steps":
        for _ in range(*choice):
            world.step(machine)
    elif action == "advance":
        world.advance(*choice)
    elif action == "run fairly":
        world.run_fairly(*choice)
    elif action == "kill":
        world.kill(machine)
    elif action == "stop":
        machine.received = True
    elif action == "fill or empty the disk":
        world.disk_is_full = not world.disk_is_full
    elif action == "resume":
        machine.resume()
    else:
        machine.frozen = action.startswith("freeze")
        if choice:
            (machine.suspend_before,) = choice
        else:
            machine.suspended = True


def check_settled(world: World, cell: str):
    path = cell_directory(DIRECTORY, cell)
    names = world.names(path)
    assert (RESULT in names) != (FAILURE in names)
    assert len(read_failures(path, names)) <= MAX_ATTEMPTS
    if FAILURE in names:
        assert len(json.loads(world.files[path / FAILURE])["attempts"]) == MAX_ATTEMPTS


def check_history(history, trainings, offsets):
    """Run a history of machines and their actions, and then until every worker has ended."""
    queue = list(trainings)

    def training(cell):
        return queue.pop(0) if len(queue) > 1 else queue[0]

    with simulated(World(training, Intervals())) as world:
        for offset in offsets:
            world.add_machine(CELLS, MAX_ATTEMPTS, offset)
        for machine, *action in history:
            act(world, world.machines[machine], *action)
            assert world.errors == []

        world.disk_is_full = False
        for machine in world.machines:
            machine.resume()
        world.add_machine(CELLS, MAX_ATTEMPTS, offset=0)
        while not all(machine.ended for machine in world.machines) and world.now < 2 * HOUR:
            world.run_fairly(10)
        assert world.errors == []
        assert [machine.error for machine in world.machines] == [None] * (len(offsets) + 1)
        assert all(machine.ended for machine in world.machines)
        for cell in CELLS:
            check_settled(world, cell)


LONG = [("finished", 500.0)]
# Machine 0 trains a, machine 1 trains b, and machine 2 looks every five seconds, from 0 on.
PAUSES = {
    "an owner that is late, in its next heartbeat, and a watcher before its claim": [
        (0, "run fairly", 2.0),
        (0, "suspend"),
        (0, "run fairly", 26.0),
        (0, "resume"),
        (0, "freeze before", "replace"),
        (2, "suspend before", "create"),
        (0, "run fairly", 24.0),
        (0, "resume"),
        (0, "steps", 6),
        (2, "resume"),
        (0, "run fairly", 2.0),
    ],
    "an owner after it has written a heartbeat": [
        (0, "run fairly", 10.0),
        (0, "suspend before", "names"),
        (0, "steps", 12),
        (0, "run fairly", 19.0),
        (0, "resume"),
        (0, "steps", 6),
        (0, "suspend"),
        (0, "run fairly", 31.0),
    ],
    "an owner before a heartbeat, but not its child": [
        (0, "run fairly", 2.0),
        (0, "suspend before", "replace"),
        (0, "run fairly", 60.0),
        (0, "resume"),
        (0, "run fairly", 2.0),
    ],
    "a watcher after it has read": [
        (0, "run fairly", 20.0),
        (2, "suspend before", "read"),
        (2, "steps", 12),
        (2, "resume"),
        (2, "steps", 1),
        (2, "suspend"),
        (0, "run fairly", 51.0),
        (2, "resume"),
        (0, "run fairly", 2.0),
    ],
    "a watcher before it reads": [
        (0, "run fairly", 13.0),
        (2, "suspend before", "read"),
        (0, "run fairly", 50.0),
        (2, "resume"),
        (0, "run fairly", 6.0),
    ],
    "a worker before its child starts": [
        (0, "suspend before", "start"),
        (0, "run fairly", 60.0),
        (0, "resume"),
        (0, "run fairly", 2.0),
    ],
}


@pytest.mark.parametrize("pause", PAUSES)
def test_a_pause_does_no_harm_to(pause):
    check_history(PAUSES[pause], LONG, [0.0, 5 * HOUR, -7 * HOUR])


@pytest.mark.fuzz
@FUZZ
@given(actions=ACTIONS, machines=MACHINES, trainings=TRAININGS, offsets=OFFSETS)
def test_no_cell_is_trained_twice_at_a_time_and_each_is_settled(
    actions, machines, trainings, offsets
):
    history = [(machine, *action) for machine, action in zip(machines, actions, strict=False)]
    check_history(history, trainings, offsets)
