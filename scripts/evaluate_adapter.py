"""Base against adapter on questions that the adapter was not trained on.

    python -m scripts.evaluate_adapter --data DATA_FOLDER --adapter dermatology

Protocol: the validation split; the serving prompt; greedy; full references. Figures: mean negative
log-likelihood of the reference for each token (nats), ROUGE-L and BLEU of the generated answers in
percent, and the share of answers that differ from the base's. Differences carry a paired bootstrap
95 % interval over questions. The last line of stdout is one JSON object, without any text.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from adapters.base_models import BaseModelError, Family, resolve_base_model
from adapters.catalog import CatalogError, load_catalog
from adapters.prompting import Message, encode_example, encode_prompt
from scripts.training_data import DataError, Pair, load_pairs

CATALOG_DIR = Path(__file__).resolve().parent.parent / "adapters"
NUM_RESAMPLES = 2000
Floats = npt.NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        report = evaluate(args)
    except (BaseModelError, CatalogError, DataError) as error:
        print(f"evaluate_adapter: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.evaluate_adapter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with <specialty>.jsonl, or one file")
    add("--adapter", required=True, help="folder of the adapter, or its name in the catalogue")
    add("--specialty", help="default: the adapter folder's name")
    add("--base_model", default="smollm2-135m-instruct")
    add("--base_model_name", help="name in the catalogue, when --base_model is a directory")
    add("--max_questions", type=int, default=60)
    add("--max_new_tokens", type=int, default=160)
    add("--batch_size", type=int, default=16)
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    return parser


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Both sides on the same questions; returns the report."""
    named = Path(args.adapter)
    folder = named if named.is_dir() else CATALOG_DIR / "weights" / args.adapter
    pairs = load_pairs(args.data, args.specialty or folder.name).validation
    pairs = pairs[: args.max_questions]
    if not pairs:
        raise DataError(f"{args.data}: no validation pair to evaluate on")
    subject = _Subject(args, folder)
    figures: dict[str, dict[str, Any]] = {}
    answers: dict[str, list[str]] = {}
    for side in ("base", "adapter"):
        nll = subject.nll(pairs, side)
        answers[side] = subject.answers(pairs, side)
        figures[side] = {"nll": nll, "rouge_l": _rouge_l(pairs, answers[side])}
    changed = sum(a != b for a, b in zip(answers["base"], answers["adapter"], strict=True))
    report: dict[str, Any] = {
        "name": folder.name,
        "num_questions": len(pairs),
        "max_new_tokens": args.max_new_tokens,
        "answers_changed": round(changed / len(pairs), 4),
    }
    for side in ("base", "adapter"):
        report[side] = {
            "nll": round(float(figures[side]["nll"].mean()), 4),
            "rouge_l": round(float(figures[side]["rouge_l"].mean()), 2),
            "bleu": round(_bleu(pairs, answers[side]), 2),
        }
    for name in ("nll", "rouge_l"):
        difference = figures["adapter"][name] - figures["base"][name]
        report[f"{name}_difference"] = _interval(difference, args.seed)
    return report


class _Subject:
    """A base model with one adapter that can be switched off."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        resolved = resolve_base_model(args.base_model)
        self._family: Family = resolved.family
        name = args.base_model_name or args.base_model
        self._entry = load_catalog(CATALOG_DIR).base_model(name, family=resolved.family)
        self._tokenizer = AutoTokenizer.from_pretrained(resolved.path)
        causal = self._family == "causal"
        model_class = AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM
        dtype = getattr(torch, args.dtype)
        base = model_class.from_pretrained(resolved.path, dtype=dtype, use_safetensors=True)
        self._model = PeftModel.from_pretrained(base, str(folder)).to(args.device).eval()
        self._args = args

    @torch.inference_mode()
    def nll(self, pairs: Sequence[Pair], side: str) -> Floats:
        """Mean negative log-likelihood for each reference token, (len(pairs),), nats."""
        values = []
        for pair in tqdm(pairs, f"likelihood, {side}"):
            prompt, answer = encode_example(
                self._entry.prompt_format,
                pair.question,
                pair.answer,
                tokenizer=self._tokenizer,
                system_line=self._entry.system_line,
            )
            with self._switched(side):
                logits = self._answer_logits(prompt, answer)
            target = torch.tensor(answer, device=logits.device)
            values.append(torch.nn.functional.cross_entropy(logits.float(), target).item())
        return np.array(values)

    def _answer_logits(self, prompt: list[int], answer: list[int]) -> torch.Tensor:
        """Logits that predict each token of `answer`, (len(answer), V)."""
        device = self._args.device
        if self._family == "causal":
            ids = torch.tensor([prompt + answer], device=device)
            causal: torch.Tensor = self._model(input_ids=ids).logits[0]
            return causal[len(prompt) - 1 : -1]
        start_id = self._model.config.decoder_start_token_id
        decoder_ids = torch.tensor([[start_id, *answer[:-1]]], device=device)
        ids = torch.tensor([prompt], device=device)
        seq2seq: torch.Tensor = self._model(input_ids=ids, decoder_input_ids=decoder_ids).logits[0]
        return seq2seq

    @torch.inference_mode()
    def answers(self, pairs: Sequence[Pair], side: str) -> list[str]:
        """Greedy answers, in the order of `pairs`."""
        texts = []
        size = self._args.batch_size
        for start in tqdm(range(0, len(pairs), size), f"answers, {side}"):
            texts += self._generate([pair.question for pair in pairs[start : start + size]], side)
        return texts

    def _generate(self, questions: Sequence[str], side: str) -> list[str]:
        prompts = [
            encode_prompt(
                self._entry.prompt_format,
                [Message("user", question)],
                tokenizer=self._tokenizer,
                system_line=self._entry.system_line,
            )
            for question in questions
        ]
        left = self._family == "causal"
        inputs = self._tokenizer.pad(
            {"input_ids": prompts}, padding_side="left" if left else "right", return_tensors="pt"
        ).to(self._args.device)
        with self._switched(side):
            output = self._model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=self._args.max_new_tokens,
                do_sample=False,
            )
        start = inputs["input_ids"].shape[1] if left else 1
        texts: list[str] = self._tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
        return texts

    def _switched(self, side: str) -> Any:
        if side == "base":
            return self._model.disable_adapter()
        return contextlib.nullcontext()


def _rouge_l(pairs: Sequence[Pair], answers: Sequence[str]) -> Floats:
    """ROUGE-L F1 of each answer, percent (Lin 2004; rouge-score with stemming)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [
        scorer.score(pair.answer, answer)["rougeL"].fmeasure
        for pair, answer in zip(pairs, answers, strict=True)
    ]
    return 100 * np.array(scores)


def _bleu(pairs: Sequence[Pair], answers: Sequence[str]) -> float:
    """Corpus BLEU, percent (Papineni et al. 2002; sacrebleu's defaults)."""
    from sacrebleu.metrics import BLEU

    return float(BLEU().corpus_score(list(answers), [[pair.answer for pair in pairs]]).score)


def _interval(differences: Floats, seed: int) -> dict[str, float]:
    """Mean of paired differences and its bootstrap 95 % interval over questions."""
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(differences), (NUM_RESAMPLES, len(differences)))
    low, high = np.percentile(differences[picks].mean(axis=1), [2.5, 97.5])
    return {
        "mean": round(float(differences.mean()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


if __name__ == "__main__":
    raise SystemExit(main())
