"""The training loop: AdamW, warm-up and decay, accumulation, clipping, the best epoch kept.

Works on any PEFT model of transformers, causal or T5. An interrupted run goes on from its last
whole epoch (`LoopState`), with the same result as one that was never interrupted.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from tqdm import tqdm

from adapters.base_models import Family

IGNORED = -100  # label of a position without loss, PyTorch's default
Tensors = dict[str, torch.Tensor]
Row = dict[str, float]


class TrainingError(RuntimeError):
    """Training cannot start or go on; the text says what was found and what to do."""


class _NotFinite(Exception):
    """The loss of a step is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one pair, cut to the lengths that were asked for."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class LoopSettings:
    epochs: int
    batch_size: int
    grad_accum: int
    learning_rate: float
    warmup: float  # share of the steps
    weight_decay: float
    clip: float  # largest norm of the gradient
    patience: int  # epochs without a better validation loss before training stops
    max_steps: int | None
    seed: int
    device: str


@dataclass(slots=True)
class LoopState:
    """Everything that a run needs to go on after `epoch` whole epochs."""

    epoch: int = 0
    num_steps: int = 0
    history: list[Row] = field(default_factory=list)  # one row an epoch, the untrained base first
    best_epoch: int = 0
    tensors: Tensors = field(default_factory=dict)  # now., best., exp_avg., exp_avg_sq. + name; rng


class LoraTrainer:
    """Trains the parameters of `model` that require a gradient."""

    def __init__(
        self, model: PeftModel, family: Family, pad_id: int, settings: LoopSettings
    ) -> None:
        self.model = model
        self.train_s = 0.0
        self.stopped: str | None = None  # why before the last epoch, filled by fit
        self._family = family
        self._pad_id = pad_id
        self._settings = settings
        self._named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._optimiser = torch.optim.AdamW(
            self._named.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def fit(
        self,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        *,
        state: LoopState | None = None,
        after_epoch: Callable[[LoopState], None] = lambda state: None,
    ) -> LoopState:
        """Train; the model ends as it was in its best epoch, the last one without `held_out`.

        Args:
            state: of an interrupted run with the same settings and data.
            after_epoch: gets the state after each whole epoch, for saving.

        Raises:
            TrainingError: the loss was not finite before one epoch was whole.
        """
        settings = self._settings
        if state is None:
            state = LoopState(history=[{"epoch": 0, **self._held_out_row(held_out)}])
        else:
            self._restore(state)
        per_epoch = math.ceil(len(examples) / (settings.batch_size * settings.grad_accum))
        total = min(per_epoch * settings.epochs, settings.max_steps or math.inf)
        started = time.perf_counter()
        while state.epoch < settings.epochs and state.num_steps < total:
            try:
                loss = self._epoch(examples, state, total)
            except _NotFinite as error:
                self._not_finite(error, state)
                break
            state.epoch += 1
            state.history.append(
                {"epoch": state.epoch, "train_loss": loss, **self._held_out_row(held_out)}
            )
            self._keep(state)
            after_epoch(state)
            if state.epoch - state.best_epoch >= settings.patience and held_out:
                self.stopped = f"no better validation loss in {settings.patience} epochs"
                break
        self.train_s = time.perf_counter() - started
        self._load(state.tensors, "best.")
        return state

    def _held_out_row(self, held_out: Sequence[Example]) -> Row:
        return {"validation_loss": self.loss_of(held_out)} if held_out else {}

    def _not_finite(self, error: _NotFinite, state: LoopState) -> None:
        if state.epoch == 0:
            raise TrainingError(
                f"{error}: lower --learning_rate, or train in float32; nothing was saved"
            ) from None
        self.stopped = f"{error}; epoch {state.best_epoch} is kept"

    def _keep(self, state: LoopState) -> None:
        """Record the epoch that has just ended, and whether it is the best so far."""
        row = state.history[-1]
        tqdm.write(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
        earlier = [r["validation_loss"] for r in state.history[1:-1] if "validation_loss" in r]
        best = dict(self._take("best.", state.tensors))
        if row.get("validation_loss", -math.inf) < min(earlier, default=math.inf) or not best:
            state.best_epoch = state.epoch
            best = {f"best.{n}": p.detach().clone() for n, p in self._named.items()}
        state.tensors = {**best, **self._snapshot()}

    @staticmethod
    def _take(prefix: str, tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, t) for name, t in tensors.items() if name.startswith(prefix))

    def _snapshot(self) -> Tensors:
        tensors = {"rng": torch.get_rng_state()}
        if self._settings.device.startswith("cuda"):
            tensors["cuda_rng"] = torch.cuda.get_rng_state()
        for name, parameter in self._named.items():
            tensors[f"now.{name}"] = parameter.detach().clone()
            for moment in ("exp_avg", "exp_avg_sq"):
                value = self._optimiser.state[parameter][moment]
                tensors[f"{moment}.{name}"] = value.clone()
        return tensors

    def _restore(self, state: LoopState) -> None:
        self._load(state.tensors, "now.")
        for name, parameter in self._named.items():
            self._optimiser.state[parameter] = {
                "step": torch.tensor(float(state.num_steps)),
                **{
                    moment: state.tensors[f"{moment}.{name}"].to(parameter.device)
                    for moment in ("exp_avg", "exp_avg_sq")
                },
            }
        torch.set_rng_state(state.tensors["rng"].cpu())
        if "cuda_rng" in state.tensors and self._settings.device.startswith("cuda"):
            torch.cuda.set_rng_state(state.tensors["cuda_rng"].cpu())

    @torch.no_grad()
    def _load(self, tensors: Tensors, prefix: str) -> None:
        for name, parameter in self._named.items():
            parameter.copy_(tensors[prefix + name])

    def _epoch(self, examples: Sequence[Example], state: LoopState, total: float) -> float:
        """One epoch; its mean training loss for each answer token.

        Raises:
            _NotFinite: the loss of a step is NaN or infinite.
        """
        size = self._settings.grad_accum
        self.model.train()
        batches = list(self._batches(examples, state.epoch))
        groups = [batches[i : i + size] for i in range(0, len(batches), size)]
        sum_loss, num_tokens = 0.0, 0
        for group in tqdm(groups, f"epoch {state.epoch + 1}", unit="step"):
            if state.num_steps >= total:
                break
            for options in self._optimiser.param_groups:
                options["lr"] = self._settings.learning_rate * self._slope(state.num_steps, total)
            sum_loss += self._step(group, state.num_steps)
            num_tokens += sum(len(example.answer) for batch in group for example in batch)
            state.num_steps += 1
        return sum_loss / max(1, num_tokens)

    def _slope(self, step: int, total: float) -> float:
        """Share of the learning rate: linear warm-up, then linear decay to 0."""
        warmup = max(1, round(self._settings.warmup * total))
        return min((step + 1) / warmup, (total - step) / max(1, total - warmup))

    def _step(self, group: list[list[Example]], step: int) -> float:
        """One optimiser step over a group of batches; their summed loss."""
        num_tokens = sum(len(example.answer) for batch in group for example in batch)
        sum_loss = 0.0
        for batch in group:
            loss = self._sum_loss(batch)
            if not torch.isfinite(loss):
                raise _NotFinite(f"the loss is not finite ({loss.item()}) at step {step}")
            torch.autograd.backward(loss / num_tokens)
            sum_loss += loss.item()
        torch.nn.utils.clip_grad_norm_(self._named.values(), self._settings.clip)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return sum_loss

    @torch.no_grad()
    def loss_of(self, examples: Sequence[Example]) -> float:
        """Mean loss for each answer token of one example or more."""
        self.model.eval()
        ordered = sorted(examples, key=len)
        size = self._settings.batch_size
        batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        total = sum(self._sum_loss(batch).item() for batch in batches)
        return total / sum(len(example.answer) for example in examples)

    def _batches(self, examples: Sequence[Example], epoch: int) -> Iterator[list[Example]]:
        """Shuffled batches of similar lengths: buckets of 16 batches are sorted by length."""
        shuffle = random.Random(f"{self._settings.seed}/{epoch}").shuffle
        order = list(range(len(examples)))
        shuffle(order)
        size = self._settings.batch_size
        batches = []
        for start in range(0, len(order), 16 * size):
            bucket = sorted(order[start : start + 16 * size], key=lambda i: len(examples[i]))
            batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
        shuffle(batches)
        for batch in batches:
            yield [examples[i] for i in batch]

    def _sum_loss(self, batch: list[Example]) -> torch.Tensor:
        """Summed cross-entropy over the answers' tokens of a batch (scalar, float32)."""
        inputs: dict[str, Any] = self._tensors(batch)
        labels = inputs.pop("labels")
        logits = self.model(**inputs).logits.float()
        if self._family == "causal":
            logits, labels = logits[:, :-1], labels[:, 1:]
        return torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            labels.reshape(-1),
            ignore_index=IGNORED,
            reduction="sum",
        )

    def _tensors(self, batch: list[Example]) -> Tensors:
        """Ids, mask and labels, each (B, T); T5 has the answer in labels of its own (B, U)."""
        if self._family == "causal":
            ids = self._padded([e.prompt + e.answer for e in batch], self._pad_id)
            labels = self._padded([[IGNORED] * len(e.prompt) + e.answer for e in batch], IGNORED)
            mask = self._padded([[1] * len(e) for e in batch], 0)
            return {"input_ids": ids, "attention_mask": mask, "labels": labels}
        answers = [e.answer for e in batch]
        start_id = self.model.config.decoder_start_token_id
        decoder_ids = [[start_id, *answer[:-1]] for answer in answers]
        return {
            "input_ids": self._padded([e.prompt for e in batch], self._pad_id),
            "attention_mask": self._padded([[1] * len(e.prompt) for e in batch], 0),
            "decoder_input_ids": self._padded(decoder_ids, self._pad_id),
            "labels": self._padded(answers, IGNORED),
        }

    def _padded(self, rows: list[list[int]], value: int) -> torch.Tensor:
        """Rows padded on the right to the longest, (B, T), int64, on the device."""
        length = max(len(row) for row in rows)
        padded = [row + [value] * (length - len(row)) for row in rows]
        return torch.tensor(padded, device=self._settings.device)
