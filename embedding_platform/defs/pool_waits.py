"""How a run waits for a place in a pool: asleep, and cancelled at once.

Dagster's executor in the run's own process asks again without a pause, which takes a whole processor
for each run that waits, and does not look whether the run is to be cancelled until it has its place.
"""

import time

from dagster import DagsterExecutionInterruptedError
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.executor import in_process
from dagster._utils.interrupts import raise_interrupts_as

_MOST_SECONDS_ASLEEP = 1.0


class _PatientClaims(InstanceConcurrencyContext):
    """The places that a run has and waits for."""

    def interval_to_next_pending_claim_check(self) -> float:
        """Seconds to sleep before a place is asked for again.

        Raises:
            DagsterExecutionInterruptedError: the run is to be cancelled.
        """
        # Entering raises an interrupt that came since the last step; they are held back between steps.
        with raise_interrupts_as(DagsterExecutionInterruptedError):
            due = min(self._pending_timeouts.values(), default=0.0) - time.time()
        return min(max(due, 0.0), _MOST_SECONDS_ASLEEP)


def wait_asleep() -> None:
    """Have runs of this process wait so."""
    in_process.InstanceConcurrencyContext = _PatientClaims  # type: ignore[misc]
