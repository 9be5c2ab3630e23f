"""Simulate routers, model replicas, their engines and adapter caches, event by event.

Routers and the processes of model replicas serve one thing after the other; an engine decodes all
its rows step by step, and reads prompts as the scheduler does (deployments/engine/scheduling).
"""

import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

from scripts.benchmarks.scale_model.costs import PROMPTS_TOGETHER, ROUTER_TURNS, Costs

_PATIENCE = 8  # steps that a few prompts wait for others while many rows decode
_HOMES = 2  # replicas that an adapter's questions go to first
_MOST = 0.95  # of a process's time for tokens, while questions wait
_FULL = 0.9  # of a replica's rows; above it another one is asked


@dataclass(frozen=True, slots=True)
class Shape:
    """What is simulated. slots, host: adapters on the device and in main memory of a replica."""

    replicas: int
    routers: int
    rows: int
    output_tokens: int
    adapters: int = 8
    slots: int = 64
    host: int = 128
    placement: str = "two_choices"
    classified: bool = False


@dataclass(slots=True)
class Answer:
    """When it was asked, its first token, its end, and whether its adapter was on the device."""

    asked: float
    first: float = 0.0
    end: float = 0.0
    hit: bool = True


class Worker:
    """One process: it takes questions one after the other, and passes the tokens of `streams`
    answers on beside them.

    Args:
        token_s: seconds of its processor for each token.
    """

    def __init__(self, token_s: float) -> None:
        self.busy_s, self.streams = 0.0, 0
        self._token_s, self._free = token_s, 0.0

    def use(self, now: float, work: float, step_s: float) -> float:
        """Return how long from now until `work` is done, while each stream has a token a step."""
        tokens = min(_MOST, self.streams * self._token_s / step_s)
        self._free = max(now, self._free) + work / (1 - tokens)
        self.busy_s += work
        return self._free - now

    def end(self, num_tokens: int) -> None:
        """An answer of so many tokens is over."""
        self.streams -= 1
        self.busy_s += num_tokens * self._token_s


class Replica:
    """One model replica: its process, its engine with `rows` rows, and its adapter caches."""

    def __init__(self, env: simpy.Environment, shape: Shape, costs: Costs) -> None:
        self.actor = Worker(costs.actor_token)
        self.asked = 0  # answers that it owes
        self._env, self._shape, self._costs = env, shape, costs
        self._waiting: deque[tuple[simpy.Event, simpy.Event]] = deque()
        self._running: list[tuple[int, int, simpy.Event]] = []  # a heap by last step
        self._num_steps = self._num_asked = 0
        self._arrived = env.event()
        self._device: OrderedDict[int, None] = OrderedDict()
        self._host: OrderedDict[int, None] = OrderedDict()
        env.process(self._decode())

    def holds(self, adapter: int) -> bool:
        return adapter in self._device

    def fetch(self, adapter: int) -> tuple[bool, float]:
        """Make an adapter resident; return whether it was, and the seconds that it takes."""
        hit, in_memory = adapter in self._device, adapter in self._host
        for tier, size in ((self._device, self._shape.slots), (self._host, self._shape.host)):
            tier[adapter] = None
            tier.move_to_end(adapter)
            if len(tier) > size:
                tier.popitem(last=False)
        return hit, 0.0 if hit else self._costs.install + self._costs.read * (not in_memory)

    def add(self) -> tuple[simpy.Event, simpy.Event]:
        """Queue a question at the engine; return the events of its first and its last token."""
        question = self._env.event(), self._env.event()
        self._waiting.append(question)
        if not self._arrived.triggered:
            self._arrived.succeed()
        return question

    def _decode(self) -> Generator[Any, Any, None]:
        env, costs, held_until = self._env, self._costs, -1
        while True:
            self._arrived = env.event()
            if not self._running and not self._waiting:
                yield self._arrived
                continue
            num = min(len(self._waiting), self._shape.rows - len(self._running))
            if self._is_crowded(num) and held_until < 0:
                held_until = self._num_steps + _PATIENCE
            if num and not (self._is_crowded(num) and self._num_steps < held_until):
                held_until = -1
                step_s = self.step_s() if self._running else 0.0
                yield env.timeout(costs.prompts(num) + step_s)
                self._advance(1)
                for _ in range(num):
                    self._admit(*self._waiting.popleft())
                continue
            step_s = self.step_s()
            end = self._running[0][0]
            steps = (min(end, held_until) if num else end) - self._num_steps
            started = env.now
            yield env.timeout(steps * step_s) | self._arrived
            done = min(steps, -int(-(env.now - started) / step_s // 1))  # a step is finished
            yield env.timeout(max(0.0, started + done * step_s - env.now))
            self._advance(done)

    def _is_crowded(self, num: int) -> bool:
        """Whether `num` prompts that could be read now had better wait for others."""
        full = len(self._waiting) > num or len(self._running) >= 4 * PROMPTS_TOGETHER
        return 0 < num < PROMPTS_TOGETHER and full and bool(self._running)

    def step_s(self) -> float:
        """Return the seconds of a step with the rows that decode now."""
        return self._costs.step(len(self._running))

    def _admit(self, first: simpy.Event, last: simpy.Event) -> None:
        first.succeed()
        self._num_asked += 1
        end = self._num_steps + self._shape.output_tokens - 1
        heapq.heappush(self._running, (end, self._num_asked, last))

    def _advance(self, steps: int) -> None:
        self._num_steps += steps
        while self._running and self._running[0][0] <= self._num_steps:
            heapq.heappop(self._running)[2].succeed()


class Cluster:
    """A clinic under load. Ask with `ask`, in processes of `env`; seeded."""

    def __init__(self, shape: Shape, costs: Costs, seed: int = 0) -> None:
        self.shape, self.costs = shape, costs
        self.random = random.Random(seed)
        self.env = simpy.Environment()
        self.answers: list[Answer] = []
        self.routers = [Worker(costs.router_token) for _ in range(shape.routers)]
        self.replicas = [Replica(self.env, shape, costs) for _ in range(shape.replicas)]
        self._weights: list[float] = []
        total = 0.0
        for rank in range(1, self.shape.adapters + 1):
            total += 1 / rank  # Zipf, s = 1
            self._weights.append(total)
        for adapter in self._draw(4 * self.shape.host * self.shape.replicas):  # caches are warm
            self.choose(adapter).fetch(adapter)

    def _draw(self, num: int) -> list[int]:
        ranks = range(self.shape.adapters)
        return self.random.choices(ranks, cum_weights=self._weights, k=num)

    def choose(self, adapter: int) -> Replica:
        """Return the replica that is to answer: the less loaded of two."""
        if self.shape.placement == "residency":
            homes = random.Random(adapter).choices(self.replicas, k=_HOMES)
            home = min(homes, key=lambda replica: replica.asked)
            if home.asked < _FULL * self.shape.rows:
                return home
        two = self.random.choices(self.replicas, k=2)
        return min(two, key=lambda replica: replica.asked)

    def ask(self) -> Generator[Any, Any, None]:
        """Simulate one question, from the client's request to the last token."""
        env, costs = self.env, self.costs
        (adapter,) = self._draw(1)
        answer = Answer(env.now)
        half_way = costs.path / 2 * self.random.lognormvariate(0.0, costs.path_spread)
        router, replica = self.random.choice(self.routers), self.choose(adapter)
        replica.asked += 1
        step_s = replica.step_s()
        yield env.timeout(half_way)
        call = costs.router_call + costs.classify * self.shape.classified
        for _ in range(ROUTER_TURNS):
            yield env.timeout(router.use(env.now, call / ROUTER_TURNS, step_s))
        answer.hit, load_s = replica.fetch(adapter)
        wait = replica.actor.use(env.now, costs.actor_call, replica.step_s())
        yield env.timeout(wait + load_s)
        first, last = replica.add()
        yield first
        answer.first = env.now + half_way + costs.router_token + costs.actor_token
        router.streams += 1
        replica.actor.streams += 1
        yield last
        for worker in (router, replica.actor):
            worker.end(self.shape.output_tokens)
        yield env.timeout(half_way)
        replica.asked -= 1
        answer.end = env.now
        self.answers.append(answer)
