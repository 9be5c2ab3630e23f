"""The KubeRay manifests: valid, hardened, closed, and with a configuration that is accepted."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from deployments.preflight import check_file
from deployments.settings import Settings, parse_settings
from deployments.startup.cluster import ENVIRONMENT
from deployments.startup.config_file import application_of
from tests.deploy.manifests import KUBERAY, OVERLAYS, load, one, pods, render, serve_config

KUBERNETES = "1.34"
SCHEMA = load(Path(__file__).with_name("rayservice.schema.yaml"))
ALL_OBJECTS = {name: render(KUBERAY / "overlays" / name) for name in OVERLAYS}
PODS = [(name, pod) for name in OVERLAYS for pod in ("head", "routers", "models")]


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return copy.deepcopy(ALL_OBJECTS[request.param])


def service(overlay: str) -> dict[str, Any]:
    return one(ALL_OBJECTS[overlay], "RayService")


def settings_of(overlay: str) -> Settings:
    return parse_settings(application_of(serve_config(service(overlay)))["args"])


def group(overlay: str, name: str) -> dict[str, Any]:
    groups = service(overlay)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (found,) = [item for item in groups if item["groupName"] == name]
    assert isinstance(found, dict)
    return found


def test_every_object_is_valid(objects: list[dict[str, Any]]) -> None:
    for item in objects:
        if item["kind"] == "RayService":
            jsonschema.validate(item, SCHEMA)
        else:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)


@pytest.mark.parametrize(("overlay", "pod"), PODS)
def test_every_pod_is_valid(overlay: str, pod: str) -> None:
    template = pods(service(overlay))[pod]
    body = {"apiVersion": "v1", "kind": "Pod", **template}
    body["metadata"] = {**template["metadata"], "name": pod}
    kubernetes_validate.validate(body, KUBERNETES, strict=True)
    body["spec"]["containers"][0]["volumeMount"] = []  # the check would see a misspelt key
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(body, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((), "serveConfig", ""),
        ((), "rayClusterConfig", {}),
        (("rayClusterConfig",), "enableInTreeAutoscaler", True),
        (("rayClusterConfig",), "authOptions", {"mode": "tokens"}),
        (("rayClusterConfig", "headGroupSpec"), "rayStartParams", {"num-cpus": 0}),
        (("rayClusterConfig", "headGroupSpec"), "serviceType", "Public"),
        (("rayClusterConfig", "workerGroupSpecs", 0), "maxReplica", 3),
        (("rayClusterConfig", "workerGroupSpecs", 0), "minReplicas", -1),
    ],
)
def test_a_wrong_field_of_the_service_is_refused(path: Any, key: str, value: Any) -> None:
    item = copy.deepcopy(service("gpu"))
    place = item["spec"]
    for step in path:
        place = place[step]
    place[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(item, SCHEMA)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_configuration_is_accepted(overlay: str, tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_text(service(overlay)["spec"]["serveConfigV2"])
    assert check_file(path) == []
    assert settings_of(overlay).auth.mode == "keys"


def test_the_pods_have_the_launchers_environment(objects: list[dict[str, Any]]) -> None:
    environment = one(objects, "ConfigMap")
    apart = {"RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}  # the operator's; loopback
    assert environment["data"] == {k: v for k, v in ENVIRONMENT.items() if k not in apart}
    found = one(objects, "RayService")
    assert found["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    reference = {"configMapRef": {"name": environment["metadata"]["name"]}}
    for template in pods(found).values():
        assert reference in template["spec"]["containers"][0]["envFrom"]


@pytest.mark.parametrize(("overlay", "pod"), PODS)
def test_every_pod_is_hardened(overlay: str, pod: str) -> None:
    spec = pods(service(overlay))[pod]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert (
        container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    )
    assert {"readinessProbe", "livenessProbe"} <= set(container)
    assert ":" in container["image"]
    assert not container["image"].endswith(":latest")
    assert [m["name"] for m in container["volumeMounts"]] == [v["name"] for v in spec["volumes"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_are_ready_while_the_clinic_answers_and_leave_in_peace(overlay: str) -> None:
    for name in ("routers", "models"):
        spec = group(overlay, name)["template"]["spec"]
        container = spec["containers"][0]
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 8000}
        script = container["lifecycle"]["preStop"]["exec"]["command"][-1]
        assert "ray drain-node" in script
        assert spec["terminationGracePeriodSeconds"] > int(script.split()[-1])
    # Not the clinic: the operator sends the configuration only to a head that is ready.
    head = pods(service(overlay))["head"]["spec"]["containers"][0]
    assert head["readinessProbe"]["httpGet"]["path"] == "/api/gcs_healthz"


def test_only_rays_pods_reach_rays_ports(objects: list[dict[str, Any]]) -> None:
    found, policy = one(objects, "RayService"), one(objects, "NetworkPolicy")["spec"]
    chosen = policy["podSelector"]["matchLabels"].items()
    assert all(chosen <= t["metadata"]["labels"].items() for t in pods(found).values())
    assert policy["policyTypes"] == ["Ingress"]
    among, *others = policy["ingress"]
    assert among == {"from": [{"podSelector": policy["podSelector"]}]}
    allowed = [{port["port"] for port in rule["ports"]} for rule in others]
    assert allowed == [{8265, 8000}, {8000}, {8080}]  # the operator, clients, Prometheus
    head = found["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)


def test_one_worker_is_drained_at_a_time(objects: list[dict[str, Any]]) -> None:
    budget = one(objects, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    chosen = budget["selector"]["matchLabels"].items()
    found = pods(one(objects, "RayService"))
    matched = {name for name, t in found.items() if chosen <= t["metadata"]["labels"].items()}
    assert matched == {"routers", "models"}


def test_model_replicas_get_a_gpu_each_from_the_autoscaler() -> None:
    settings, models = settings_of("gpu"), group("gpu", "models")
    limits = models["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    assert settings.device == "cuda"  # auto would see no GPU while there is no GPU node
    assert models["minReplicas"] <= settings.model_replicas.min
    assert models["maxReplicas"] == settings.model_replicas.max + 1  # an upgrade has one more
    assert service("gpu")["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"]


def test_the_state_is_where_every_pod_reaches_it() -> None:
    claim = one(ALL_OBJECTS["cpu"], "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for template in pods(service("cpu")).values():
        mounts = template["spec"]["containers"][0]["volumeMounts"]
        assert {"name": "state", "mountPath": settings_of("cpu").state_dir} in mounts
    assert str(settings_of("gpu").state_dir).startswith("s3://")
    assert not [item for item in ALL_OBJECTS["gpu"] if item["kind"] == "PersistentVolumeClaim"]
    for template in pods(service("gpu")).values():
        spec = template["spec"]
        assert spec["volumes"][2]["secret"]["secretName"] == "polyclinic-keys"
        assert {"secretRef": {"name": "polyclinic-bucket"}} in spec["containers"][0]["envFrom"]


def test_no_secret_is_in_the_tree(objects: list[dict[str, Any]]) -> None:
    assert not [item for item in objects if item["kind"] == "Secret"]
