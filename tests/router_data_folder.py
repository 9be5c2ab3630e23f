"""The small questions as a folder of prepare_router_dataset."""

import json
from pathlib import Path
from typing import Any

from tests.router.small_questions import small_questions

MANIFEST = {
    "sources": ["written:small.jsonl"],
    "hold_out": [],
    "unseen_names": False,
    "sha256": "0" * 64,
    "attribution": {"written": "ours"},
}


def rows() -> list[dict[str, Any]]:
    """Small questions of three seeds in three splits, and a term in each of the two that train."""
    found = [
        {
            "id": f"{split}-{number}",
            "input": question.text,
            "specialty": question.specialty,
            "lang": question.language,
            "source": "written",
            "split": split,
            "kind": "question",
            "group": f"text {question.text}",
        }
        for seed, split in enumerate(("encoder", "head", "validation"))
        for number, question in enumerate(small_questions(seed))
    ]
    term = found[0] | {"input": "Angina Pectoris", "kind": "term", "specialty": "cardiology"}
    for split in ("encoder", "head", "validation"):
        found.append(term | {"id": f"term-{split}", "split": split})
    return found


def make_data_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
    return folder
