"""The preflight names every bad key of the file, Ray's own sections included, and the machine."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import preflight
from deployments.api.access.api_keys import KeyStore, new_key
from deployments.preflight import check_file, main
from deployments.settings import PROJECT_ROOT
from deployments.startup.config_file import http_address

SHIPPED = PROJECT_ROOT / "serve_config.yaml"


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def application(**changes: Any) -> dict[str, Any]:
    base = {"name": "clinic", "import_path": "deployments.app:build", "args": {}}
    return {"http_options": {"host": "127.0.0.1"}, "applications": [{**base, **changes}]}


def test_the_shipped_file_is_fine() -> None:
    assert check_file(SHIPPED) == []


def test_a_file_of_typos_is_answered_in_one_message(tmp_path: Path, capsys: Any) -> None:
    content = {
        "http_option": {"port": 1},
        "http_options": {"prt": 8000},
        "applications": [
            {
                "name": "x",
                "import_path": "deployments.app:build",
                "arg": {},
                "args": {"base_modl": "x"},
                "deployments": [
                    {
                        "name": "Router",
                        "num_replica": 2,
                        "ray_actor_options": {"num_gpu": 1},
                        "user_config": {"min_confidenc": 0.4},
                    },
                    {"name": "Modell"},
                ],
            }
        ],
    }
    assert main(["--no-machine", str(written(tmp_path, content))]) == 2
    text = capsys.readouterr().err
    assert "preflight: 8 problems" in text
    for key, meant in {
        "http_option": "http_options",
        "http_options.prt": "port",
        "applications.x.arg": "args",
        "applications.x.deployments.Router.num_replica": "num_replicas",
        "applications.x.deployments.Router.ray_actor_options.num_gpu": "num_gpus",
        "args.base_modl": "base_model",
        "deployments.Router.user_config.min_confidenc": "min_confidence",
    }.items():
        assert f"- {key}: unknown key; did you mean '{meant}'?" in text
    assert "deployments.Modell: no such deployment; did you mean 'Model'?" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [1", "line 1"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is given twice"),
        ("- 1\n- 2\n", "a mapping of keys is expected, found list"),
        ("", "found NoneType"),
        ({"applications": []}, "exactly one application"),
        (
            application(import_path="deployments.api.app:build"),
            "it must be 'deployments.app:build'",
        ),
        (application(args=[1]), "args: a mapping of keys is expected"),
        (application(args={"adapters": "no/such/folder"}), "folder"),
        (application(args={"adapters": "\0"}), "args.adapters: a path without NUL"),
        (application(args={"state_dir": "s4://bucket/x"}), "s4:// is no kind of store"),
        (application(args={"base_model": "./no-such-model"}), "does not exist"),
        (application(args={"quantization": "nf4", "device": "cpu"}), "needs a GPU"),
        (application(args={"quantization": "int4", "device": "cuda"}), "'int4' is a CPU's"),
        (
            application(deployments=[{"name": "Model", "num_replicas": 2}]),
            "the builder decides this; use args: model_replicas",
        ),
        (
            application(deployments=[{"name": "Model", "ray_actor_options": {"num_gpus": 1}}]),
            "use args: device",
        ),
        (
            application(deployments=[{"name": "Router", "user_config": {"min_confidence": 2}}]),
            "less than or equal to 1",
        ),
        ({**application(), "http_options": {"port": "eighty"}}, "http_options.port"),
        ({**application(), "http_options": {"port": 70000}}, "from 1 to 65535 is expected (got 70"),
        ({**application(), "proxy_location": "Disabled"}, "starts no HTTP server"),
        ({**application(), "logging_config": {"log_lvl": "INFO"}}, "did you mean 'log_level'"),
        ({**application(), "logging_config": {"log_level": "LOUD"}}, 'Got "LOUD" for log_level'),
        ({**application(), "grpc_options": {"prt": 1}}, "grpc_options.prt: unknown key"),
        (application(runtime_env={"env_var": {}}), "did you mean 'env_vars'"),
        (application(route_prefix=None), "gives no HTTP route"),
        *(
            (application(route_prefix=prefix), f"nor }} (got {prefix!r})")
            for prefix in ("clinic", "/clinic/", "/{x}", "", "//")
        ),
        (application(args={1: 2}), "args.1"),
        (application(deployments={"name": "Model"}), "applications.clinic.deployments: Input"),
        (
            application(deployments=[{"name": "Model", "max_ongoing_requests": 0}]),
            "applications.clinic.deployments.Model.max_ongoing_requests: Input should be greater",
        ),
        (
            application(deployments=[{"name": "Router", "autoscaling_config": {"min_replica": 1}}]),
            "autoscaling_config.min_replica: unknown key; did you mean 'min_replicas'",
        ),
        (
            application(deployments=[{"name": "Model", "ray_actor_options": {"num_cpus": 2}}]),
            "they would replace the builder's whole set, num_gpus too",
        ),
        (application(deployments=[{"name": "Model"}] * 2), "deployments.Model: is listed 2 times"),
        ("port: 2026-99-99\n", "not YAML"),
        ("a: \x01", "not YAML"),
    ],
)
def test_each_problem_is_named(tmp_path: Path, content: Any, words: str) -> None:
    problems = check_file(written(tmp_path, content))
    assert any(words in problem for problem in problems), problems


def test_options_that_leave_the_gpu_alone_are_fine(tmp_path: Path) -> None:
    options = {"name": "Router", "ray_actor_options": {"num_cpus": 1}, "max_queued_requests": 9}
    assert check_file(written(tmp_path, application(deployments=[options]))) == []


@pytest.mark.parametrize(
    ("limit_s", "user_config", "words"),
    [
        (60, {}, "60 s ends requests before the Router's max_timeout_s of 280.0 s"),
        (60, {"max_timeout_s": 59.5}, "(and 1 s of grace)"),
        (60, {"max_timeout_s": 58.5}, None),
        (None, {}, None),
        (300, {}, None),
    ],
)
def test_an_answer_ends_before_rays_server_ends_it(
    tmp_path: Path, limit_s: Any, user_config: dict[str, Any], words: str | None
) -> None:
    content = application(deployments=[{"name": "Router", "user_config": user_config}])
    content["http_options"] = {"host": "127.0.0.1", "request_timeout_s": limit_s}
    problems = check_file(written(tmp_path, content))
    assert len(problems) == (words is not None), problems
    assert words is None or words in problems[0]


def test_a_wrong_key_does_not_hide_a_wrong_value(tmp_path: Path) -> None:
    content = {
        **application(),
        "http_option": {},
        "logging_config": {"log_lvl": 1, "log_level": "X"},
    }
    problems = check_file(written(tmp_path, content))
    assert len(problems) == 3, problems
    assert "http_option: unknown key" in problems[0]
    assert "logging_config.log_lvl: unknown key" in problems[1]
    assert problems[2].startswith("logging_config.log_level:")


def test_an_anchor_may_be_merged_and_its_keys_overruled(tmp_path: Path) -> None:
    text = (
        "http_options: {host: 127.0.0.1}\n"
        "applications:\n  - name: clinic\n    import_path: deployments.app:build\n"
        "    args: {engine: {<<: &few {max_rows: 2}, max_rows: 4}}\n"
    )
    assert check_file(written(tmp_path, text)) == []


def test_one_line_when_all_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(preflight, "check_machine", lambda *at: asked.append(at) or [])
    monkeypatch.setattr(preflight, "machine_notes", lambda: ["9 GiB"])
    monkeypatch.setattr(preflight, "check_shelf", lambda path: ([], ["5 passages"]))
    assert main([str(SHIPPED)]) == 0
    assert asked == [("127.0.0.1", 8000)]
    assert capsys.readouterr().out == (f"preflight: {SHIPPED} is fine (9 GiB; 5 passages)\n")
    assert main(["--no-machine", str(SHIPPED)]) == 0
    assert capsys.readouterr().out == f"preflight: {SHIPPED} is fine\n"
    monkeypatch.setattr(preflight, "check_machine", lambda *at: ["the port is in use"])
    assert main([str(written(tmp_path, {"applicatons": []}))]) == 2
    text = capsys.readouterr().err
    assert "applicatons: unknown key" in text
    assert "the port is in use" in text


def test_traces_that_cannot_be_sent_are_refused_on_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "check_machine", lambda *at: [])
    monkeypatch.setattr(preflight, "machine_notes", lambda: [])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")
    assert main([str(SHIPPED)]) == 2
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is 'collector:4317'" in capsys.readouterr().err
    assert main(["--no-machine", str(SHIPPED)]) == 0
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert main([str(SHIPPED)]) == 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (problem,) = check_file(tmp_path / "none.yaml")
    assert "none.yaml: no such file" in problem


def test_the_address_comes_from_the_file() -> None:
    assert http_address({"http_options": {"host": "0.0.0.0", "port": 9}}) == ("0.0.0.0", 9)
    assert http_address({}) == ("0.0.0.0", 8000)


def test_an_open_server_on_a_public_address_is_refused(tmp_path: Path) -> None:
    content = application()
    for options in ({"host": "0.0.0.0"}, {"host": "::"}, {"host": "10.0.0.7"}, {}):
        content["http_options"] = options  # without a host Ray listens on all interfaces
        (problem,) = check_file(written(tmp_path, content))
        for words in ("args.auth.mode: 'open'", "deployments.keys create", "allow_open: true"):
            assert words in problem
    for options in ({"host": "localhost"}, {"host": "127.0.1.1"}, {"host": "::1"}):
        content["http_options"] = options
        assert check_file(written(tmp_path, content)) == []


@pytest.mark.parametrize("auth", [{"mode": "keys"}, {"allow_open": True}])
def test_keys_or_a_word_from_the_operator_let_it_start(
    tmp_path: Path, auth: dict[str, Any]
) -> None:
    content = application(args={"auth": auth, "state_dir": str(tmp_path)})
    content["http_options"] = {"host": "0.0.0.0"}
    assert check_file(written(tmp_path, content)) == []


def test_mode_keys_without_a_key_is_refused_on_the_machine(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "check_machine", lambda host, port: [])
    content = application(args={"auth": {"mode": "keys"}, "state_dir": str(tmp_path / "state")})
    path = written(tmp_path, content)
    assert main([str(path)]) == 2
    assert "has no active key" in capsys.readouterr().err
    store = KeyStore(tmp_path / "state")
    store.change(lambda records: [new_key("user")[1]])
    assert main([str(path)]) == 0
    store.path.write_text("{")
    assert main([str(path)]) == 2
    assert "has a bad key file" in capsys.readouterr().err
