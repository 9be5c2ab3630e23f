"""Use any Hugging Face encoder as the router's encoder, by mean pooling over its last layer.

    router:   # in serve_config.yaml
      encoder: intfloat/multilingual-e5-base
      artefact: an artefact that was trained on it

An artefact's head belongs to the encoder that it was fitted on, so another encoder needs training:
`python -m scripts.train_router --encoder NAME`. Needs torch and transformers.
"""

from collections.abc import Sequence

import numpy as np

from router.encoder import BATCH_TOKENS, Encoded

MAX_TOKENS = 512


class TransformersEncoder:
    """A Hugging Face encoder. Only safetensors are read; the model's own code is not run.

    Args:
        name_or_folder: a Hugging Face id or a folder.
        threads: of PyTorch in this process; None leaves them as they are.

    Raises:
        OSError: there is no such model; the text comes from transformers.
    """

    def __init__(self, name_or_folder: str, *, threads: int | None = None) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        if threads is not None:
            torch.set_num_threads(threads)
        self.name = name_or_folder
        self._tokenizer = AutoTokenizer.from_pretrained(name_or_folder, trust_remote_code=False)
        self._model = AutoModel.from_pretrained(
            name_or_folder, trust_remote_code=False, use_safetensors=True
        ).eval()
        self.hidden = int(self._model.config.hidden_size)
        limit = int(
            getattr(self._model.config, "max_position_embeddings", MAX_TOKENS) or MAX_TOKENS
        )
        self._max_tokens = min(MAX_TOKENS, limit - 2)  # RoBERTa's positions begin at 2

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode the first tokens of each text, as many as the model has positions for."""
        import torch

        size = max(1, BATCH_TOKENS // self._max_tokens)
        found: list[Encoded] = []
        for start in range(0, len(texts), size):
            batch = self._tokenizer(
                list(texts[start : start + size]),
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_offsets_mapping=True,
                return_tensors="pt",
            )
            offsets = batch.pop("offset_mapping").numpy()
            with torch.inference_mode():
                states = self._model(**batch).last_hidden_state.float().numpy()
            for row, mask, spans in zip(
                states, batch["attention_mask"].numpy().astype(bool), offsets, strict=True
            ):
                num_tokens = int(mask.sum())
                weights = np.full(num_tokens, 1 / num_tokens, dtype=np.float32)
                found.append(Encoded(row[mask], weights, spans[mask].astype(np.int64)))
        return found
