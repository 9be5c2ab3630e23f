"""Settings: strict, all problems at once, nearest valid key."""

from pathlib import Path

import pytest

from deployments.live_settings import RouterLiveSettings
from deployments.settings import PROJECT_ROOT, Settings, parse_settings, project_path
from deployments.strict_model import SettingsError, parse_strict


def test_no_args_are_the_documented_defaults() -> None:
    settings = parse_settings({})
    assert settings == Settings()
    assert settings.catalog_dir == PROJECT_ROOT / "adapters"
    assert settings.router_dir == Path(settings.adapter_state) / "router"


def test_all_problems_come_in_one_message() -> None:
    bad = {"base_modl": "x", "engine": {"max_row": 3, "max_rows": "a"}, "device": "gpu"}
    with pytest.raises(SettingsError) as refused:
        parse_settings(bad)
    text = str(refused.value)
    assert text.startswith("4 problems in args of serve_config.yaml:")
    assert "base_modl: unknown key; did you mean 'base_model'?" in text
    assert "engine.max_row: unknown key; did you mean 'max_rows'?" in text
    assert "engine.max_rows: Input should be a valid integer (got 'a')" in text
    assert "device: Input should be 'auto', 'cuda' or 'cpu' (got 'gpu')" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"model_replicas": {"min": 3, "max": 1}}, "min (3) is above max (1)"),
        ({"engine": {"default_output_tokens": 600}}, "above max_output_tokens (512)"),
        ({"engine": {"max_rows": 0}}, "greater than or equal to 1"),
        ({"engine": {"max_rows": True}}, "valid integer"),
        ({"base_model": ""}, "at least 1 character"),
        ({"base_model": 7}, "valid string (got 7)"),
        ({"engine": None}, "EngineSettings"),
        ({"model_replicas": {"upscale_delay_s": float("nan")}}, "finite"),
        ({"state_dir": "file:///srv/clinic"}, "the path alone is expected"),
        ({"state_dir": "s3://"}, "a bucket is expected"),
        ({"state_dir": "relative"}, "an absolute path is expected"),
    ],
)
def test_bad_values_are_named(args: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_settings(args)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "section", ["base_model", "adapters", "state_dir", "artefact", "encoder", "path"]
)
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/srv/" + "x" * 256, "has 256 bytes, at most 255"),
        ("/srv/" + "\u00e9" * 128, "has 256 bytes, at most 255"),
        ("/srv/" * 1000, "at most 4000 characters"),
        ("/srv/\0", "without NUL"),
        ("~nobody-of-this-name/x", "~ names a user that this machine does not have"),
    ],
)
def test_what_no_file_can_be_called_is_refused_by_name(section: str, path: str, words: str) -> None:
    owner = {"artefact": "router", "encoder": "router", "path": "references"}.get(section)
    args = {owner: {section: path}} if owner else {section: path}
    with pytest.raises(SettingsError) as refused:
        parse_settings(args)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{owner}.{section}: " if owner else f"{section}: ")
    assert words in problem


def test_live_settings_are_as_strict() -> None:
    with pytest.raises(SettingsError, match="did you mean 'min_confidence'"):
        parse_strict(RouterLiveSettings, {"min_confidenc": 0.4}, "user_config")


def test_relative_paths_resolve_against_the_project(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert project_path("adapters") == PROJECT_ROOT / "adapters"
    assert project_path(str(tmp_path)) == tmp_path
    assert parse_settings({"base_model": "adapters"}).base_model_or_dir == str(
        PROJECT_ROOT / "adapters"
    )
    assert parse_settings({"base_model": "org/name"}).base_model_or_dir == "org/name"
