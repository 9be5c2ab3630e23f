"""The compose files: valid, hardened, and open to this machine alone."""

import json
import re
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

from deployments.startup.config_file import drain_s
from tests.deploy.manifests import DEPLOY, load

COMPOSE = DEPLOY / "compose"
FILES = ("compose.yaml", "gpu.yaml")
SERVICES = ("clinic", "prometheus", "grafana")
CONTENT = load(COMPOSE / "compose.yaml")
VENDORED = "builtin_schemas/vendor/compose-spec.json"
# Folders of deploy/ that may be mounted.
MOUNTED = ("../prometheus/", "../grafana/", "./targets")


@pytest.fixture(scope="module")
def schema() -> Any:
    return json.loads((files("check_jsonschema") / VENDORED).read_text())


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_valid(name: str, schema: Any) -> None:
    jsonschema.validate(load(COMPOSE / name), schema)


@pytest.mark.parametrize(
    ("key", "value"), [("port", ["8000"]), ("pids_limit", [1]), ("restart", 3)]
)
def test_a_wrong_key_or_value_is_refused(key: str, value: Any, schema: Any) -> None:
    content = load(COMPOSE / "compose.yaml")
    content["services"]["clinic"][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    service = CONTENT["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert "mem_limit" in service
    assert not service.get("privileged")
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    if "build" not in service:
        assert re.search(r":v?[\d.]+@sha256:[0-9a-f]{64}$", service["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_what_it_mounts_is_named_or_lies_in_deploy(name: str) -> None:
    for volume in CONTENT["services"][name]["volumes"]:
        source = volume.split(":")[0]
        if source.startswith("."):
            assert volume.endswith(":ro")
            assert source.startswith(MOUNTED)
            path = COMPOSE / source
            assert path.exists() or not path.parent.exists(), source
        else:
            assert source in CONTENT["volumes"]


def test_the_networks_keep_rays_ports_from_grafana() -> None:
    networks = {name: set(service["networks"]) for name, service in CONTENT["services"].items()}
    assert not networks["clinic"] & networks["grafana"]
    assert networks["clinic"] & networks["prometheus"]


def test_stopping_waits_for_answers() -> None:
    clinic = CONTENT["services"]["clinic"]
    grace_s = int(clinic["stop_grace_period"].removesuffix("s"))
    assert grace_s >= drain_s(DEPLOY / "docker" / "serve_config.yaml") + 10


@pytest.mark.parametrize("name", FILES)
def test_rays_object_store_lies_in_shared_memory(name: str) -> None:
    clinic = load(COMPOSE / name)["services"]["clinic"]
    shared, memory = (int(re.findall(r"\d+", clinic[k])[0]) for k in ("shm_size", "mem_limit"))
    assert shared > 0.3 * memory  # Ray would take the disk otherwise


def test_the_image_is_the_one_of_the_dockerfile() -> None:
    build = CONTENT["services"]["clinic"]["build"]
    root = COMPOSE / build["context"]
    assert (root / build["dockerfile"]).samefile(DEPLOY / "docker" / "Dockerfile")
    gpu = load(COMPOSE / "gpu.yaml")["services"]["clinic"]
    text = (root / build["dockerfile"]).read_text()
    for target in (build["target"], gpu["build"]["target"]):
        assert f"AS {target}" in text
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_no_password_is_in_the_file() -> None:
    password = CONTENT["services"]["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    assert password.startswith("${GRAFANA_PASSWORD:?")
