"""Serve's choice of a model replica for a call; ingress/residency.py decides.

Serve copies this module's code into the process that routes, so it keeps no state here.
"""

from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from deployments.ingress.residency import ranked, residency
from deployments.messages import GenerateRequest


class AdapterAwareRouter(FIFOMixin, RequestRouter):
    """A router for handles of the Model deployment.

    First come, first served, because Serve's other rule tells requests apart by an id that all
    calls of one HTTP request share (second opinions, several prompts): all but one would wait
    for ever.
    """

    def initialize_state(self, slack: int) -> None:
        """Serve calls it with `request_router_kwargs`."""
        self._slack = slack

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        call = None
        if pending_request is not None:
            # Without it Serve would try again without a pause while all are full.
            pending_request.routing_context.should_backoff = True
            call = _call_of(pending_request)

        def holds(replica: RunningReplica) -> bool:
            return (
                call is not None
                and call.adapter is not None
                and residency().holds(_name(replica), call)
            )

        def num_requests(replica: RunningReplica) -> int:
            return self.replica_queue_len_cache.get(replica.replica_id) or 0

        answering = residency().answering(candidate_replicas, _name)
        return ranked(answering, holds, num_requests, self._slack)

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        """Serve's own, whose choice we note: `on_request_routed` comes only when the replica has
        taken the call, and one that hangs never does."""
        chosen: RunningReplica = await super()._choose_replica_for_request(
            pending_request, is_retry=is_retry
        )
        call = _call_of(pending_request)
        if call is not None:
            residency().chose(_name(chosen), call)
        return chosen

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        call = _call_of(pending_request)
        if call is not None:
            residency().sent(replica_id.unique_id, call)


def _name(replica: RunningReplica) -> str:
    return str(replica.replica_id.unique_id)


def _call_of(pending: PendingRequest) -> GenerateRequest | None:
    """Return the question that is routed; None for another call."""
    first = pending.args[0] if pending.args else None
    return first if isinstance(first, GenerateRequest) else None
