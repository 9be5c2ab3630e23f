"""Answers and likelihoods of a base model with and without one adapter, in batches.

The answers of base and adapter on disk: a header line, then one line a question and system.

It holds ids, our models' answers and figures, never the data's own text, and grows line by line, so
that an interrupted run goes on.
"""

import contextlib
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from adapters.base_models import ResolvedBaseModel
from adapters.catalog import BaseModelEntry
from adapters.prompting import Message, encode_example, encode_prompt
from scripts.datasets.record import DataError, read_jsonl
from scripts.lora.adapter_on_base import with_adapter
from scripts.lora.batches import IGNORED, Example, tensors_of

SYSTEMS = ("base", "adapter")
# What two runs must have in common to be one evaluation. The base's answers are the same for every
# adapter, so theirs may differ in the adapter.
_SAME = (
    *("schema", "specialty", "adapter_sha256", "base_model", "split", "data_files"),
    *("protocol", "dtype", "num_questions", "num_diagnostic_items"),
)


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One system's answer to one question.

    Attributes:
        num_tokens: generated, the end-of-sequence token included.
        hit_limit: generation ended without that token.
        nll: negative log-likelihood of the whole reference, nats; None for a question without one.
        num_reference_tokens: of the reference, the end-of-sequence token included.
        time_s: the batch's time over its size, on `device`.
    """

    id: str
    system: str
    answer: str
    num_tokens: int
    hit_limit: bool
    nll: float | None
    num_reference_tokens: int
    time_s: float
    device: str


@dataclass(frozen=True, slots=True)
class Answers:
    header: dict[str, Any]
    rows: dict[str, dict[str, AnswerRow]]  # system -> id -> row


def start(path: Path, header: dict[str, Any]) -> set[tuple[str, str]]:
    """Begin a file, or go on with one; the (system, id) that it has already.

    Raises:
        DataError: the file is of another adapter, data or protocol.
    """
    if path.is_file():
        _drop_torn_line(path)
    if not path.is_file() or path.stat().st_size == 0:  # not even the header was whole
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return set()
    there = read_answers(path)
    different = [key for key in _SAME if there.header.get(key) != header.get(key)]
    if different:
        raise DataError(
            f"{path}: it is of another run: {', '.join(different)} differ; remove it, or give "
            "another --out"
        )
    return {(system, id_) for system, rows in there.rows.items() for id_ in rows}


def base_rows(path: Path, header: dict[str, Any]) -> list[AnswerRow]:
    """The base's rows of another adapter's file.

    Raises:
        DataError: the file is of another base, data or protocol.
    """
    other = read_answers(path)
    same = [key for key in _SAME if key != "adapter_sha256"]
    different = [key for key in same if other.header.get(key) != header.get(key)]
    if different:
        raise DataError(f"{path}: its base answers do not fit: {', '.join(different)} differ")
    return list(other.rows["base"].values())


def append(path: Path, rows: Iterable[AnswerRow]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)


def read_answers(path: Path) -> Answers:
    """Read the whole file.

    Raises:
        DataError: no such file, a malformed line, or a row given twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; write it with --stage answers")
    lines = read_jsonl(path)
    _, header = next(lines, (0, {}))
    if header.get("schema") != 1:
        raise DataError(f"{path.name}, line 1: not the header of an answers file")
    rows: dict[str, dict[str, AnswerRow]] = {system: {} for system in SYSTEMS}
    for number, item in lines:
        try:
            row = AnswerRow(**item)
        except TypeError as error:
            raise DataError(f"{path.name}, line {number}: {error}") from None
        if row.system not in rows or row.id in rows[row.system]:
            raise DataError(f"{path.name}, line {number}: {row.system} {row.id}: unknown or twice")
        rows[row.system][row.id] = row
    return Answers(header, rows)


def _drop_torn_line(path: Path) -> None:
    """A run that was killed while writing leaves half a line: it is generated again."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])


# References in one forward pass: the logits of 16 x 400 tokens x 50,000 words are 1.3 GB.
SCORED_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class Protocol:
    """How answers are made, fixed before training. Recorded with every result.

    The base model is told a length, in its system line, because it would ramble to the limit
    otherwise and lose on every overlap measure for that alone; the adapter is not. Likelihoods use
    the serving prompt for both.
    """

    base_instruction_words: int  # median length of a training answer, words
    decoding: str = "greedy"
    max_new_tokens: int = 256
    prompt: str = "serving prompt"
    references: str = "full"

    @property
    def base_instruction(self) -> str:
        return f"Answer in at most {self.base_instruction_words} words."

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"base_instruction": self.base_instruction}


def protocol_for(training_answers: Sequence[str]) -> Protocol:
    return Protocol(round(statistics.median(len(answer.split()) for answer in training_answers)))


@dataclass(frozen=True, slots=True)
class Item:
    """A question; `reference` is None where only the answer is wanted."""

    id: str
    question: str
    reference: str | None


class AnswerModel:
    """A base model with one adapter that can be switched off.

    Args:
        adapter: its folder.
        dtype: of the base; the adapter is loaded in the same.

    Raises:
        AdapterError: the adapter is damaged, or of a model with other layers.
    """

    def __init__(
        self, base: ResolvedBaseModel, entry: BaseModelEntry, adapter: Path, dtype: str, device: str
    ) -> None:
        self._family = base.family
        self._entry = entry
        self._device = device
        self._tokenizer = AutoTokenizer.from_pretrained(base.path)
        self._pad_id = self._tokenizer.pad_token_id or 0
        causal = self._family == "causal"
        model_class = AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM
        model = model_class.from_pretrained(
            base.path, dtype=getattr(torch, dtype), use_safetensors=True
        )
        self._model = with_adapter(model, adapter).to(device).eval()

    @property
    def adapter_mib(self) -> float:
        """Memory of the adapter's weights, MiB."""
        sizes: list[int] = [
            weight.nbytes for name, weight in self._model.named_parameters() if "lora_" in name
        ]
        return sum(sizes) / 2**20

    @torch.inference_mode()
    def answer(
        self, items: Sequence[Item], system: str, protocol: Protocol, batch_size: int
    ) -> Iterator[list[AnswerRow]]:
        """Rows batch by batch; questions of similar length share a batch.

        Args:
            system: "base" or "adapter".
        """
        order = sorted(items, key=lambda item: (len(item.question), item.id))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            with self._switched(system):
                began = time.perf_counter()
                outputs = self._generate([item.question for item in batch], system, protocol)
                time_s = (time.perf_counter() - began) / len(batch)
                likelihoods = [
                    found
                    for part in range(0, len(batch), SCORED_TOGETHER)
                    for found in self._likelihoods(batch[part : part + SCORED_TOGETHER])
                ]
            yield [
                AnswerRow(
                    id=item.id,
                    system=system,
                    answer=self._tokenizer.decode(ids, skip_special_tokens=True).strip(),
                    num_tokens=len(ids),
                    hit_limit=self._tokenizer.eos_token_id not in ids,
                    nll=nll,
                    num_reference_tokens=count,
                    time_s=round(time_s, 4),
                    device=device_name(self._device),
                )
                for item, ids, (nll, count) in zip(batch, outputs, likelihoods, strict=True)
            ]

    def _generate(
        self, questions: Sequence[str], system: str, protocol: Protocol
    ) -> list[list[int]]:
        """Generated ids up to the end-of-sequence id, which is kept."""
        line = self._entry.system_line
        if system == "base":
            line = f"{line} {protocol.base_instruction}".lstrip()
        prompts = [
            encode_prompt(
                self._entry.prompt_format,
                [Message("user", question)],
                tokenizer=self._tokenizer,
                system_line=line,
            )
            for question in questions
        ]
        longest = max(map(len, prompts))
        left = self._family == "causal"
        ids = [_padded(prompt, longest, self._pad_id, left) for prompt in prompts]
        mask = [_padded([1] * len(prompt), longest, 0, left) for prompt in prompts]
        output = self._model.generate(
            input_ids=torch.tensor(ids, device=self._device),
            attention_mask=torch.tensor(mask, device=self._device),
            max_new_tokens=protocol.max_new_tokens,
            do_sample=False,
            pad_token_id=self._pad_id,
        )
        generated = output[:, longest if left else 1 :].tolist()  # T5's first is the start id
        return [self._up_to_end(row) for row in generated]

    def _up_to_end(self, ids: list[int]) -> list[int]:
        end = self._tokenizer.eos_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids

    def _likelihoods(self, batch: Sequence[Item]) -> list[tuple[float | None, int]]:
        """(summed negative log-likelihood of the reference in nats, its tokens) of each item."""
        with_reference = [item for item in batch if item.reference is not None]
        if not with_reference:
            return [(None, 0)] * len(batch)
        examples = [
            Example(
                *encode_example(
                    self._entry.prompt_format,
                    item.question,
                    item.reference or "",
                    tokenizer=self._tokenizer,
                    system_line=self._entry.system_line,
                )
            )
            for item in with_reference
        ]
        start_id = getattr(self._model.config, "decoder_start_token_id", None)
        tensors = tensors_of(examples, self._family, self._pad_id, start_id)
        labels = tensors.pop("labels").to(self._device)
        logits = self._model(**{k: v.to(self._device) for k, v in tensors.items()}).logits
        if self._family == "causal":
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2).float(), labels, ignore_index=IGNORED, reduction="none"
        )
        totals = losses.double().sum(dim=1).tolist()
        for item, total in zip(with_reference, totals, strict=True):
            if not math.isfinite(total):
                raise DataError(
                    f"question {item.id}: the likelihood of its reference is not finite ({total}): "
                    "the adapter is damaged, or --dtype is too narrow for it; try float32"
                )
        sums = iter(totals)
        lengths = iter([len(example.answer) for example in examples])
        return [
            (None, 0) if item.reference is None else (next(sums), next(lengths)) for item in batch
        ]

    def _switched(self, system: str) -> contextlib.AbstractContextManager[Any]:
        disabled: contextlib.AbstractContextManager[Any] = self._model.disable_adapter()
        return disabled if system == "base" else contextlib.nullcontext()


def device_name(device: str) -> str:
    return str(torch.cuda.get_device_name()) if device.startswith("cuda") else device


def _padded(ids: list[int], length: int, value: int, left: bool) -> list[int]:
    filling = [value] * (length - len(ids))
    return filling + ids if left else ids + filling
