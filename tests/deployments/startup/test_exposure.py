"""Ray's token: without it every port of Ray takes code, so it is turned off only on request."""

import pytest

from deployments import preflight
from deployments.settings import PROJECT_ROOT
from deployments.startup.exposure import check_ray_auth


@pytest.mark.parametrize("mode", ["disabled", "DISABLED", "", "off", "none", "kerberos"])
def test_an_inherited_mode_without_a_token_is_refused(mode: str) -> None:
    [problem] = check_ray_auth(False, {"RAY_AUTH_MODE": mode})
    assert f"RAY_AUTH_MODE: is '{mode}'" in problem
    assert "--allow_open_ray" in problem
    assert check_ray_auth(True, {"RAY_AUTH_MODE": mode}) == []


@pytest.mark.parametrize(
    "environment", [{}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_MODE": "Token"}]
)
def test_the_token_is_the_rule(environment: dict[str, str]) -> None:
    assert check_ray_auth(False, environment) == []


def test_the_preflight_of_a_machine_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(preflight, "check_machine", lambda host, port: [])
    monkeypatch.setattr(preflight, "_check_state", lambda content: [])
    config = str(PROJECT_ROOT / "serve_config.yaml")
    assert preflight.main([config]) == 2
    assert "RAY_AUTH_MODE: is 'disabled'" in capsys.readouterr().err
    assert preflight.main(["--allow_open_ray", config]) == 0
    assert preflight.main(["--no-machine", config]) == 0
