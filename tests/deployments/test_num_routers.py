"""How many router replicas a cluster gets."""

import pytest
import ray

from deployments.app import num_routers, with_routers
from deployments.settings import parse_settings
from deployments.strict_model import SettingsError


@pytest.mark.parametrize(
    ("cores", "routers"), [(0.5, 1), (2, 1), (15, 1), (16, 2), (64, 8), (1000, 16)]
)
def test_auto_follows_the_cluster(
    cores: float, routers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cores})
    assert num_routers("auto") == routers
    assert num_routers(3) == 3


@pytest.mark.parametrize("replicas", [0, 257, "all", 1.5, True, None])
def test_what_is_no_number_of_replicas_is_refused(replicas: object) -> None:
    with pytest.raises(SettingsError, match=r"router\.replicas"):
        parse_settings({"router": {"replicas": replicas}})


def test_each_router_knows_how_many_share_the_limits_of_keys() -> None:
    settings = parse_settings({"router": {"replicas": "auto", "threads": 2}})
    known = with_routers(settings, 3)
    assert (known.router.replicas, known.router.threads) == (3, 2)
    assert known.model_config_id == settings.model_config_id
