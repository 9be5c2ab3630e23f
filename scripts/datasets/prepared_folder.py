"""Write the prepared folder: files for training and for the router, manifest.json, report.md."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.bases.models import sha256_of
from scripts.datasets.record import DataError, Record
from scripts.pages.markdown import render

TEMPLATE = Path(__file__).with_name("report.md.j2")


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse a folder that is there, unless it is to be replaced and prepare wrote it.

    Raises:
        DataError: names what to do.
    """
    if not out.exists():
        return
    if not overwrite:
        raise DataError(f"--out {out}: it exists; give another folder, or --overwrite")
    if any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise DataError(
            f"--out {out}: it has no manifest.json, so this script did not write it: give another "
            "folder"
        )


def write_folder(out: Path, records: Sequence[Record], manifest: dict[str, Any]) -> None:
    """Write `out` whole or, on a full disk, not at all; add the files' sha256 to `manifest`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        fresh = Path(folder) / out.name
        fresh.mkdir()
        _write_records(fresh, records)
        manifest["files"] = {
            str(path.relative_to(fresh)): sha256_of(path) for path in sorted(fresh.rglob("*.json*"))
        }
        text = json.dumps(manifest, ensure_ascii=False, indent=1)
        (fresh / "manifest.json").write_text(text + "\n", encoding="utf-8")
        (fresh / "report.md").write_text(render(TEMPLATE, **manifest), encoding="utf-8")
        if out.exists():
            out.rename(Path(folder) / "replaced")
        shutil.move(fresh, out)


def _write_records(folder: Path, records: Sequence[Record]) -> None:
    for stem in sorted({record.file for record in records}):
        rows = [record for record in records if record.file == stem]
        lines = "".join(json.dumps(r.row(), ensure_ascii=False) + "\n" for r in rows)
        (folder / f"{stem}.jsonl").write_text(lines, encoding="utf-8")
        if not rows[0].is_pair:
            continue
        (folder / stem).mkdir()
        for split in ("train", "validation"):
            pairs = [{"input": r.question, "output": r.answer} for r in rows if r.split == split]
            text = json.dumps(pairs, ensure_ascii=False, indent=1)
            (folder / stem / f"{split}.json").write_text(text + "\n", encoding="utf-8")
