"""Run the reference decoder: any transformers model, any LoRA, by `set_adapter` + `generate`.

It is the fallback for what the fast decoder cannot do. One adapter is active at a time, so requests
run in groups.
"""

import contextlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from deployments.engine.adapter_biases import AdapterBiases
from deployments.engine.decoder import DecoderInfo, RowSink
from deployments.engine.detokenizer import hidden_ids, text_decoder, token_bytes
from deployments.engine.errors import AdapterHasNoEffect, AdapterNotSupported
from deployments.engine.lora.base_copies import (
    check_copies,
    check_vocabulary,
    ends_of,
    kept_ends,
    kept_weights,
    vocabulary_of,
)
from deployments.engine.lora.peft_features import check_is_servable, check_scales
from deployments.engine.lora.peft_repairs import (
    beside_others,
    check_all_loaded,
    check_runs_beside,
    check_wrapped_once,
    named_failure,
    tied_modules,
    unwrap,
)
from deployments.engine.model_loader import Pretrained
from deployments.engine.models.invariance import PADDED
from deployments.engine.quantised.linear import QuantisedLinear
from deployments.engine.request import Request, SamplingParams
from deployments.engine.structured.grammar import GrammarCompiler
from deployments.engine.structured.processor import GrammarProcessor
from deployments.engine.structured.vocabulary import Vocabulary, no_structure

logger = logging.getLogger(__name__)

_MOST_CHANGED = 16  # tokens of a probe that an adapter was trained on


class PeftDecoder:
    """Implement GroupDecoder (decoder.py). Not thread-safe: one thread at a time."""

    def __init__(self, base: Pretrained, *, reason: str = "") -> None:
        """Wrap `base`; `reason` says why this decoder was chosen, for /readyz."""
        self.tokenizer = base.tokenizer
        self.decode = text_decoder(base.tokenizer)
        self.token_bytes = token_bytes(base.tokenizer)
        self._base = base.model
        for module in base.model.modules():
            if isinstance(module, QuantisedLinear):
                module.settle()
        self._peft: PeftModel | None = None
        self._family = base.family
        why = f"; {reason}" if reason else ""
        self._reason = f"set_adapter + generate; {base.dtype_name}: {base.dtype_reason}{why}"
        self._dtype = base.dtype_name
        self._active: str | None = None
        self._names: dict[str, str] = {}  # ours -> PEFT's
        self._resident: frozenset[str] = frozenset()
        self._biases = AdapterBiases(base.model)
        self._tied, self._ends = tied_modules(base.model), ends_of(base.model)
        self._vocabulary = vocabulary_of(base.model)
        named = base.model.named_parameters(remove_duplicate=False)
        self._weights = {path: p.data for path, p in named if not path.endswith("bias")}
        self._num_loaded = 0
        self._eos_ids = base.eos_ids
        self._hidden_ids = hidden_ids(base.tokenizer)
        self._pad_id = base.pad_id
        self._vocab_size = int(base.model.config.get_text_config().vocab_size)
        vocabulary = Vocabulary(base.tokenizer, self._vocab_size, base.eos_ids)
        self.grammars = GrammarCompiler(vocabulary)
        why = "the reference decoder, which serves this model, gives no scores, continues no text"
        self._refused = dict.fromkeys(("logprobs", "echo"), why)
        if why_not := no_structure(base):
            self._refused["structure"] = why_not
        self._decoder_start_id, self._forced = base.decoder_start_id, base.forced
        self._side_positions, self._num_token_ids = base.side_positions, base.num_token_ids
        # The folder's own generation defaults (a temperature, a repetition penalty) would be mixed
        # into each request's parameters, so they are replaced by greedy ones.
        base.model.generation_config = self._generation_config(SamplingParams(max_tokens=1), 1)

    @property
    def info(self) -> DecoderInfo:
        positions = getattr(self._base.config, "max_position_embeddings", None)
        return DecoderInfo(
            name="reference",
            reason=self._reason,
            batch_invariant_reason=PADDED,
            device=str(self._base.device),
            dtype=self._dtype,
            num_positions=positions if self._family == "causal" else None,
            eos_ids=self._eos_ids,
            hidden_ids=self._hidden_ids,
            adapters=self._resident,
            refuses=self._refused,
            side_positions=self._side_positions,
            forces_end=self._forced.last is not None,
            num_token_ids=self._num_token_ids,
        )

    def load_adapter(self, name: str, directory: Path) -> None:
        """Make a LoRA adapter resident under `name`. PEFT reads its format and its scale.

        Raises:
            AdapterHasNoEffect: the logits with it equal the base's.
            AdapterNotSupported: it would change the base model, its scale is absurd, or its file
                does not hold what its configuration says.
            ValueError, RuntimeError, OSError: PEFT cannot read it, or its shapes do not fit.
        """
        check_is_servable(directory)
        check_vocabulary(directory, self._vocabulary)
        check_copies(directory, self._ends)
        inner = f"a{self._num_loaded}"  # PEFT allows no dot in a name, and ours hold versions
        self._num_loaded += 1
        with kept_ends(directory, self._ends):
            self._inject(inner, directory)
        earlier = self._names.get(name)
        self._names[name] = inner
        try:
            self._check_loaded(name, inner, directory)
        except Exception:
            self.evict(name)
            if earlier is not None:
                self._names[name] = earlier
                self._resident = frozenset(self._names)
            raise
        if earlier is not None:
            self._delete(earlier)
        self._resident = frozenset(self._names)

    def _check_loaded(self, name: str, inner: str, directory: Path) -> None:
        """Raise what `load_adapter` raises of an adapter that PEFT could read."""
        scales = {
            path: layer.scaling[inner]
            for path, layer in self._model.named_modules()
            if isinstance(layer, LoraLayer) and inner in layer.scaling
        }
        check_scales(directory, scales)
        if self._awaited(name) and self._family == "seq2seq":
            problem = "alora_invocation_tokens is set, which PEFT applies to decoder-only models"
            raise AdapterNotSupported(directory, [problem], "train it without")
        size = self._vocab_size
        if strange := [token for token in self._awaited(name) if not 0 <= token < size]:
            problem = f"alora_invocation_tokens has {strange}; the base has 0 to {size - 1}"
            raise AdapterNotSupported(directory, [problem], "train it on this base")
        effect = self.adapter_effect(name)
        if not 0 < effect < math.inf:
            raise AdapterHasNoEffect(
                f"adapter '{name}' from {directory} does not change the base model's logits "
                f"(largest difference {effect}): train it again, or disable it in the catalogue"
            )
        logger.info("adapter %s is resident; it moves the logits by up to %.3g", name, effect)

    def _inject(self, inner: str, directory: Path) -> None:
        """Let PEFT load the folder; if it raises, remove what it had injected by then."""
        try:
            with (
                self._biases.loading(inner),
                kept_weights(directory, self._weights),
                beside_others(self._tied),
            ):
                if self._peft is None:
                    self._peft = PeftModel.from_pretrained(
                        self._base, str(directory), adapter_name=inner
                    )
                # Of the first adapter too, again: only this says what did not fit.
                loaded = self._peft.load_adapter(str(directory), adapter_name=inner)
                taken = self._biases.take(directory, loaded.unexpected_keys)
                check_all_loaded(directory, inner, loaded, self._weights, taken)
                check_wrapped_once(directory, inner, self._base)
                check_runs_beside(directory, [*self._peft.peft_config.values()])
        except Exception as error:
            if self._peft is None:
                unwrap(self._base)
            else:
                # PEFT forgets the name of an adapter that it cannot inject, and leaves its layers.
                self._peft.peft_config.setdefault(inner, LoraConfig())
                self._delete(inner)
            others = self._peft is not None
            if named := named_failure(directory, error, inner, beside_others=others):
                raise named from error
            raise
        # PEFT takes one adapter with biases at a time; ours are swapped.
        self._peft.peft_config[inner].bias = "none"
        self._peft.eval()

    def read_adapter(self, directory: Path) -> Path:
        """Return the folder: PEFT reads it in `install`."""
        return directory

    def num_host_bytes(self, weights: Path) -> int:
        return 0

    def install(self, name: str, weights: Path, *, probe: bool = True) -> None:
        """Load an adapter, between two groups. It is always probed, whatever `probe` says."""
        self.load_adapter(name, weights)

    def dry_run(self, name: str, weights: Path) -> None:
        """Raise what `install` would raise, and leave nothing resident. Between two groups."""
        self.load_adapter(name, weights)
        self.evict(name)

    def evict(self, name: str) -> None:
        """Forget an adapter, between two groups.

        Raises:
            KeyError: it is not resident.
        """
        if self._peft is None or name not in self._names:
            raise KeyError(f"adapter '{name}' is not resident (resident: {list(self._names)})")
        if self._active == name:
            self._active = None
        self._delete(self._names.pop(name))
        self._resident = frozenset(self._names)

    def _delete(self, inner: str) -> None:
        """Delete an adapter from PEFT's model, and its layers that no other adapter uses.

        PEFT would then activate what is left in the first layer: nothing, if no other adapter
        changes that one. Layers of modules_to_save that are left behind would not be tied again.
        """
        assert self._peft is not None, f"{inner} was never loaded"
        self._biases.forget(inner)
        others = [name for name in self._peft.peft_config if name != inner]
        if others and inner in self._peft.active_adapters:
            self._peft.set_adapter(others[0], inference_mode=True)
        self._peft.delete_adapter(inner)
        unwrap(self._base, keeps_used=True)
        if not others:
            self._peft = None

    def adapter_effect(self, name: str) -> float:
        """Return the largest absolute difference that it makes to the logits of a fixed probe."""
        previous = self._active
        ids = self._probe_ids(name)
        with_adapter = self._probe_logits(name, ids)
        without = self._probe_logits(None, ids)
        self.set_adapter(previous)
        return float((with_adapter - without).abs().max())

    def set_adapter(self, name: str | None) -> None:
        if name is not None:
            if self._peft is None or name not in self._names:
                raise KeyError(f"adapter '{name}' is not resident (resident: {list(self._names)})")
            self._peft.set_adapter(self._names[name], inference_mode=True)
        self._biases.select(None if name is None else self._names[name])
        self._active = name

    @torch.inference_mode()
    def generate(self, group: Sequence[Request], sink: RowSink) -> None:
        sampling = group[0].sampling
        if len(group) > 1 and not all(r.sampling.is_argmax for r in group):
            raise ValueError("a group of several requests must be greedy and without penalties")
        input_ids, attention_mask = self._pad([r.prompt_ids for r in group])
        config = self._generation_config(sampling, max(r.sampling.max_tokens for r in group))
        with self._adapter_set(), _seeded(sampling, str(self._base.device)):
            self._model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([_EmitAndStop(sink)]),
                logits_processor=self._processors(sampling),
            )

    def _processors(self, sampling: SamplingParams) -> LogitsProcessorList:
        if sampling.grammar is None:
            return LogitsProcessorList()
        matcher, _ = self.grammars.fresh_matcher(sampling.grammar)
        return LogitsProcessorList([GrammarProcessor(matcher)])

    @property
    def _model(self) -> Any:
        return self._peft if self._peft is not None else self._base

    def _adapter_set(self) -> contextlib.AbstractContextManager[Any]:
        if self._active is None and self._peft is not None:
            context: contextlib.AbstractContextManager[Any] = self._peft.disable_adapter()
            return context
        return contextlib.nullcontext()

    def _pad(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask, both (B, T), padded on the left for a decoder-only model."""
        length = max(len(prompt) for prompt in prompts)
        ids, mask = [], []
        for prompt in prompts:
            padding = [self._pad_id] * (length - len(prompt))
            ones, zeros = [1] * len(prompt), [0] * len(padding)
            left = self._family == "causal"
            ids.append([*padding, *prompt] if left else [*prompt, *padding])
            mask.append([*zeros, *ones] if left else [*ones, *zeros])
        device = self._base.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _generation_config(self, sampling: SamplingParams, max_new_tokens: int) -> GenerationConfig:
        picked: dict[str, Any] = {}
        if not sampling.is_greedy:
            names = ("temperature", "top_p", "top_k")
            picked = {name: getattr(sampling, name) for name in names}
        if sampling.repetition_penalty != 1:
            picked["repetition_penalty"] = sampling.repetition_penalty
        if sampling.no_repeat_ngram_size:
            picked["no_repeat_ngram_size"] = sampling.no_repeat_ngram_size
        if sampling.min_tokens:
            picked["min_new_tokens"] = sampling.min_tokens
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=not sampling.is_greedy,
            eos_token_id=sorted(self._eos_ids),
            pad_token_id=self._pad_id,
            decoder_start_token_id=self._decoder_start_id,
            forced_bos_token_id=self._forced.first,
            forced_eos_token_id=self._forced.last if sampling.grammar is None else None,
            **picked,
        )

    def _probe_ids(self, name: str) -> list[int]:
        """Return 8 fixed tokens, behind them some that the adapter may change alone, and those that
        it waits for."""
        fixed = [(7 + 13 * i) % self._vocab_size for i in range(8)]
        return [*fixed, *self._changed_tokens(name)[:_MOST_CHANGED], *self._awaited(name)]

    def _changed_tokens(self, name: str) -> list[int]:
        """Return tokens whose embedding an adapter changes, and may change no other's."""
        assert self._peft is not None, f"{name} was never loaded"
        inner = self._names[name]
        trained = getattr(self._peft.peft_config[inner], "trainable_token_indices", None) or []
        lists = trained.values() if isinstance(trained, dict) else [trained]
        found = [token for own in lists for token in own]
        for module in self._base.modules():
            if isinstance(module, LoraLayer) and inner in module.lora_embedding_A:
                found.insert(0, int(module.lora_embedding_A[inner].abs().sum(0).argmax()))
        return found

    def _awaited(self, name: str) -> list[int]:
        """Return the tokens from which on an adapter acts (aLoRA); empty if it always does."""
        assert self._peft is not None, f"{name} was never loaded"
        config = self._peft.peft_config[self._names[name]]
        return list(getattr(config, "alora_invocation_tokens", None) or ())

    @torch.inference_mode()
    def _probe_logits(self, name: str | None, ids: Sequence[int]) -> torch.Tensor:
        """Return the logits of a probe, (T, V) in float32 on the CPU."""
        self.set_adapter(name)
        inputs = {"input_ids": torch.tensor([ids], device=self._base.device)}
        if self._family == "seq2seq":
            inputs["decoder_input_ids"] = inputs["input_ids"]
        with self._adapter_set():
            logits: torch.Tensor = self._model(**inputs).logits
        return logits[0].float().cpu()


class _EmitAndStop(StoppingCriteria):
    """Push each row's newest token to the sink, and stop the rows that are done.

    This is a stopping criterion rather than a streamer: it sees the token in the step that made
    it, so a row that ends costs no further step, and it works for any number of rows.
    """

    def __init__(self, sink: RowSink) -> None:
        self._sink = sink

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        done = []
        for row, token_id in enumerate(input_ids[:, -1].tolist()):
            if not self._sink.is_done(row):
                self._sink.push(row, token_id)
            done.append(self._sink.is_done(row))
        return torch.tensor(done, device=input_ids.device)


@contextlib.contextmanager
def _seeded(sampling: SamplingParams, device: str) -> Any:
    """Draw from a separate generator state if the request has a seed."""
    if sampling.is_greedy or sampling.seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(sampling.seed)
        yield
