"""A state folder that not every node sees is refused at start."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from deployments.app import check_shared_state
from deployments.settings import Settings, parse_settings
from deployments.strict_model import SettingsError

NODES = [
    {"NodeID": "a", "NodeManagerAddress": "10.0.0.1", "Alive": True},
    {"NodeID": "b", "NodeManagerAddress": "10.0.0.2", "Alive": True},
    {"NodeID": "gone", "NodeManagerAddress": "10.0.0.3", "Alive": False},
]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("ray.nodes", lambda: NODES)
    return parse_settings({"state_dir": str(tmp_path / "state")})


def test_a_folder_that_every_node_sees(settings: Settings, tmp_path: Path) -> None:
    asked: list[str] = []

    def look(nodes: Sequence[str], mark: Path) -> Mapping[str, bool | str]:
        assert mark.is_file()
        asked.extend(nodes)
        return dict.fromkeys(nodes, True)

    check_shared_state(settings, look)
    assert asked == ["a", "b"]
    assert list((tmp_path / "state").iterdir()) == [], "the mark is taken away"


def test_a_node_local_folder_names_the_nodes(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"not seen by 1 of 2 nodes: 10\.0\.0\.2; set it"):
        check_shared_state(settings, lambda nodes, mark: {"a": True, "b": False})
    with pytest.raises(SettingsError, match=r"10\.0\.0\.2 \(GetTimeoutError\)"):
        check_shared_state(settings, lambda nodes, mark: {"a": True, "b": "GetTimeoutError"})
    assert list((tmp_path / "state").iterdir()) == []


def test_a_single_node_and_an_object_store_are_not_asked(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(nodes: Sequence[str], mark: Path) -> Mapping[str, bool | str]:
        raise AssertionError("asked")

    check_shared_state(parse_settings({"state_dir": "s3://bucket/clinic"}), look)
    monkeypatch.setattr("ray.nodes", lambda: NODES[:1])
    check_shared_state(settings, look)
    assert not (tmp_path / "state").exists()


def test_where_the_live_state_lies(tmp_path: Path) -> None:
    one, two = (parse_settings({"adapters": str(tmp_path / n)}) for n in ("one", "two"))
    assert one.adapter_state != two.adapter_state, "clinics on one machine do not mix"
    assert parse_settings({"state_dir": "s3://b/x"}).adapter_state == "s3://b/x"
    assert parse_settings({"state_dir": str(tmp_path)}).adapter_state == str(tmp_path)
    with pytest.raises(SettingsError, match="an absolute path is expected"):
        parse_settings({"state_dir": "state"})
