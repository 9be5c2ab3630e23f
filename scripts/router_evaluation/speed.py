"""Measure how fast and how large a router is: times in this process, memory in fresh ones.

One encoder thread, as in serving. The clock runs around `classify`; warm-ups are discarded. Memory
is the resident set of a process that loaded the router, and nothing else of this project, and then
classified 100 questions.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from router.classifier import Classifier
from scripts.environment import processor
from scripts.router_evaluation.metrics import Estimate, quantile, repeats

NUM_WARM_UPS = 5
NUM_SINGLE = 300  # questions timed one by one
PAGE_CHARS = 8000
NUM_PAGES = 50
BATCH = 256
NUM_BATCHES = 5
NUM_LOADS = 3
NUM_FOR_MEMORY = 100
_FRESH = """
import json, pathlib, sys, time
folder, texts = json.load(sys.stdin)
started = time.perf_counter()
from router.classifier import Classifier
from scripts.environment import processor
imported = time.perf_counter()
classifier = Classifier.load(pathlib.Path(folder))
loaded = time.perf_counter()
classifier.classify([[text] for text in texts])
import psutil
resident = psutil.Process().memory_info().rss
print(json.dumps([imported - started, loaded - imported, resident]))
"""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast and how large a router is."""

    question_ms: dict[str, Estimate]  # time of one text by percentile ("p50", "p95")
    page_ms: dict[str, Estimate]  # the same of a page
    per_second: Estimate  # questions a second, `batch` of them in one call
    batch: int
    import_s: Estimate  # of fresh processes
    load_s: Estimate  # of fresh processes
    resident_bytes: int  # of the largest of them, after `num_for_memory` questions
    num_for_memory: int
    folder_bytes: dict[str, int]  # file name -> size
    num_cores: int
    processor: str
    load_1_min: float


def measure(classifier: Classifier, model: Path, texts: Sequence[str], seed: int) -> Speed:
    """Time questions, pages and batches, and load the router in fresh processes.

    Args:
        classifier: loaded from `model` with one thread.
        texts: questions to time with.
    """
    load_1_min = os.getloadavg()[0]
    generator = random.Random(seed)
    shuffled = generator.sample(list(texts), k=len(texts))
    question = _times(classifier, shuffled[:NUM_SINGLE], "one by one")
    page = _times(classifier, pages(texts, generator), "pages")
    batches = [generator.choices(shuffled, k=BATCH) for _ in range(NUM_BATCHES + 1)]
    fresh = [
        _fresh(model, shuffled[:NUM_FOR_MEMORY]) for _ in tqdm(range(NUM_LOADS), "fresh processes")
    ]
    return Speed(
        question_ms=_percentiles(question, seed),
        page_ms=_percentiles(page, seed),
        per_second=repeats([_per_second(classifier, batch) for batch in batches][1:]),
        batch=BATCH,
        import_s=repeats([seconds for seconds, _, _ in fresh]),
        load_s=repeats([seconds for _, seconds, _ in fresh]),
        resident_bytes=max(resident for _, _, resident in fresh),
        num_for_memory=min(NUM_FOR_MEMORY, len(shuffled)),
        folder_bytes={p.name: p.stat().st_size for p in sorted(model.iterdir()) if p.is_file()},
        num_cores=os.cpu_count() or 1,
        processor=processor(),
        load_1_min=load_1_min,
    )


def pages(texts: Sequence[str], generator: random.Random) -> list[str]:
    """Return pages of PAGE_CHARS characters, each of other questions in random order."""
    found = []
    for _ in range(NUM_PAGES):
        page = ""
        while len(page) < PAGE_CHARS:
            page += generator.choice(texts) + " "
        found.append(page[:PAGE_CHARS])
    return found


def _times(classifier: Classifier, texts: Sequence[str], title: str) -> np.ndarray:
    """Return the milliseconds of each text, (len(texts),)."""
    for text in texts[:NUM_WARM_UPS]:
        classifier.classify([[text]])
    times = []
    for text in tqdm(texts, title):
        started = time.perf_counter()
        classifier.classify([[text]])
        times.append((time.perf_counter() - started) * 1000)
    return np.array(times)


def _percentiles(times: np.ndarray, seed: int) -> dict[str, Estimate]:
    return {f"p{percent}": quantile(times, percent, seed=seed) for percent in (50, 95)}


def _per_second(classifier: Classifier, batch: Sequence[str]) -> float:
    started = time.perf_counter()
    classifier.classify([[text] for text in batch])
    return len(batch) / (time.perf_counter() - started)


def _fresh(model: Path, texts: Sequence[str]) -> tuple[float, float, int]:
    """Return seconds to import, seconds to load and resident bytes of a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", _FRESH],
        input=json.dumps([str(model.resolve()), list(texts)]),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parent.parent.parent,
    )
    imported, loaded, resident = json.loads(done.stdout)
    return imported, loaded, resident
