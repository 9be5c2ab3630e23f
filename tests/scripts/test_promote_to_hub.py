"""A promoted adapter is pushed to the hub, and what comes back from there is served."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from scripts import promote_adapter
from scripts.lora import hub as adapter_hub
from scripts.lora.errors import HubError
from tests.scripts.test_promote_adapter import (
    HEAD,
    catalog,
    checked,
    good_result,
    listed,
    llama,
    promote,
    set_interval,
)

__all__ = ["catalog", "llama"]  # fixtures


class Hub:
    """Stands in for HfApi; what is pushed can be pulled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.private: dict[str, bool] = {}

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private[name] = private

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> str:
        assert not [
            p for p in allow_patterns if not p.endswith((".safetensors", "json", "l", "md"))
        ]
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"https://hub/{repo_id}"

    def snapshot_download(
        self, name: str, *, revision: str | None, local_dir: Path, allow_patterns: list[str]
    ) -> None:
        assert "*.bin" not in allow_patterns
        if revision == "gone":
            raise FileNotFoundError("no such revision")
        shutil.copytree(self.folder / name, local_dir)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(adapter_hub, "_api", lambda: found)
    return found


def test_to_the_hub_and_back(
    llama: Path, catalog: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    result = good_result(llama)
    assert promote(llama, catalog, result, "--push_to_hub", "me/dermatology") == 0
    assert (
        json.loads(capsys.readouterr().out.splitlines()[-1])["hub"] == "https://hub/me/dermatology"
    )
    assert hub.private == {"me/dermatology": True}
    (catalog / "catalog.yaml").write_text(HEAD)
    shutil.rmtree(catalog / "weights")
    call = ["--evaluation", str(tmp_path / "result.json"), "--catalog", str(catalog)]
    assert promote_adapter.main(["--from_hub", "me/dermatology", *call]) == 0
    assert checked(catalog)
    assert promote_adapter.main(["--from_hub", "me/dermatology@gone", *call]) == 2
    assert "--from_hub me/dermatology@gone: FileNotFoundError" in capsys.readouterr().err


def test_only_an_active_adapter_is_pushed_and_a_failed_push_says_so(
    llama: Path,
    catalog: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worse = good_result(llama)
    set_interval("bleu", -3.0, -0.1)(worse)
    assert promote(llama, catalog, worse, "--push_to_hub", "me/dermatology") == 1
    assert hub.private == {}

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "upload_folder", offline)
    assert promote(llama, catalog, good_result(llama), "--push_to_hub", "me/dermatology") == 2
    told = capsys.readouterr().err
    assert "dermatology is active in the catalogue, but --push_to_hub me/dermatology" in told
    assert listed(catalog)["dermatology"].state == "active"
    with pytest.raises(HubError, match="ConnectionError: no network"):
        adapter_hub.push(llama, "me/dermatology", private=True)
