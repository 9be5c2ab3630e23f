"""Drives a step decoder without threads: requests that arrive at given steps, tokens out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deployments.engine.decoder import StepDecoder
from deployments.engine.request import Request, SchedulerOutput, SequenceState
from deployments.engine.scheduling.scheduler import Scheduler


@dataclass
class Run:
    """Answers by position of the request, and the plans of all steps."""

    answers: list[list[int]]
    plans: list[SchedulerOutput] = field(default_factory=list)

    @property
    def most_rows(self) -> int:
        return max(len(plan.emits) for plan in self.plans)

    @property
    def most_adapters(self) -> int:
        """Adapters, the base among them, in the most mixed step."""
        return max(len({job.request.adapter for job in plan.emits}) for plan in self.plans)


def run_rows(
    decoder: StepDecoder,
    requests: Sequence[Request],
    *,
    arrivals: Sequence[int] | None = None,
    prefill_tokens: int = 64,
    cancel_after: dict[int, int] | None = None,
    before_step: Callable[[int], None] = lambda step: None,
) -> Run:
    """All requests to their end.

    Args:
        arrivals: step before which each request arrives; default: all before the first.
        cancel_after: position of a request -> tokens after which it is given up.
    """
    books = Scheduler(
        decoder.capacities,
        prefill_tokens=prefill_tokens,
        can_split_prompts=decoder.can_split_prompts,
    )
    due = list(arrivals) if arrivals is not None else [0] * len(requests)
    run = Run([[] for _ in requests])
    number: dict[SequenceState, int] = {}
    eos_ids = decoder.info.eos_ids
    step = 0
    while books.sequences or len(number) < len(requests):
        before_step(step)
        for i, request in enumerate(requests):
            if due[i] == step:
                number[books.add(request, 0.0)] = i
        plan = books.schedule(0.0)
        books.check_invariants()
        for job in plan.admitted:
            assert job.row is not None
            decoder.set_adapter(job.row, job.request.adapter)
        tokens = decoder.step(plan).wait()
        run.plans.append(plan)
        for job in plan.emits:
            assert job.row is not None
            answer = run.answers[number[job]]
            answer.append(tokens[job.row])
            limit = (cancel_after or {}).get(number[job], job.request.sampling.max_tokens)
            if answer[-1] in eos_ids or len(answer) >= limit:
                books.finish(job)
                decoder.free(job.row)
        step += 1
    return run
