"""The preflight names every bad key of the file, Ray's own sections included, and the machine."""

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import preflight
from deployments.preflight import (
    check_cluster_file,
    check_disk,
    check_file,
    check_port,
    http_address,
    main,
)
from deployments.settings import PROJECT_ROOT

SHIPPED = PROJECT_ROOT / "serve_config.yaml"


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def application(**changes: Any) -> dict[str, Any]:
    base = {"name": "clinic", "import_path": "deployments.app:build", "args": {}}
    return {"applications": [{**base, **changes}]}


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
        (application(import_path="deployments.api:build"), "it must be 'deployments.app:build'"),
        (application(args=[1]), "args: a mapping of keys is expected"),
        (application(args={"adapters": "no/such/folder"}), "folder"),
        (application(args={"base_model": "./no-such-model"}), "does not exist"),
        (application(args={"quantization": "int8", "device": "cpu"}), "needs a GPU"),
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
    ],
)
def test_each_problem_is_named(tmp_path: Path, content: Any, words: str) -> None:
    problems = check_file(written(tmp_path, content))
    assert any(words in problem for problem in problems), problems


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (problem,) = check_file(tmp_path / "none.yaml")
    assert "none.yaml: no such file" in problem


def test_the_address_comes_from_the_file() -> None:
    assert http_address({"http_options": {"host": "0.0.0.0", "port": 9}}) == ("0.0.0.0", 9)
    assert http_address({}) == ("127.0.0.1", 8000)


def test_a_port_in_use_is_seen_even_when_it_is_shared() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        (problem,) = check_port("127.0.0.1", port, "http_options.port", "choose another port")
        assert f"127.0.0.1:{port} is in use: choose another port" in problem
    assert check_port("127.0.0.1", port, "http_options.port", "choose another port") == []


def test_a_stale_cluster_file_is_named_and_a_live_one_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "ray_current_cluster"
    assert check_cluster_file(file) == []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        file.write_text(f"127.0.0.1:{port}")
        assert check_cluster_file(file) == []
    (problem,) = check_cluster_file(file)
    assert f"delete the file (rm {file})" in problem
    file.write_text("nonsense")
    assert len(check_cluster_file(file)) == 1


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_disk(tmp_path / "not" / "yet", "the cache") == []
    monkeypatch.setattr(preflight, "MIN_FREE_BYTES", 2**60)
    (problem,) = check_disk(tmp_path / "not" / "yet", "the cache")
    assert f"the cache ({tmp_path})" in problem
    assert "are needed" in problem
