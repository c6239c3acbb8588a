"""What is applied to a cluster is valid by the schemas, fits together, and says the same as the
configuration of a plain host."""

import ipaddress
import json
import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

from adapterops.engine.server import ENVIRONMENT
from adapterops.schemas import ROOT
from adapterops.specs.serving import load_serving_config

KUBERNETES = ROOT / "configs" / "kubernetes"
RESOURCES = [
    resource
    for name in yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    for resource in yaml.safe_load_all((KUBERNETES / name).read_text())
]
CRDS = json.loads((ROOT / "tests" / "kubernetes_schemas.json").read_text())
# Sidecars and their order of ending are stable from 1.33 on.
VERSIONS = ("1.33", "1.37")


def name_of(resource):
    return f"{resource['kind']}/{resource['metadata']['name']}"


def find(kind):
    [found] = [resource for resource in RESOURCES if resource["kind"] == kind]
    return found


def check(resource, version):
    if crd := CRDS.get(resource["kind"]):
        jsonschema.Draft202012Validator(crd).validate(resource)
    else:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.fixture
def config():
    return load_serving_config(KUBERNETES / "serving.yaml")


@pytest.fixture
def pod():
    return find("StatefulSet")["spec"]["template"]["spec"]


def container(pod, name):
    [found] = [item for item in pod["initContainers"] + pod["containers"] if item["name"] == name]
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("resource", RESOURCES, ids=name_of)
def test_every_resource_is_valid(resource, version):
    check(resource, version)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("InferencePool", lambda spec: spec.update(targetPortNumber=8080)),  # its name before v1
        ("InferencePool", lambda spec: spec["endpointPickerRef"].pop("port")),
        (
            "HTTPRoute",
            lambda spec: spec["rules"][0]["backendRefs"][0].pop("kind"),
        ),  # then it is a Service, which needs a port
        ("HTTPRoute", lambda spec: spec["rules"][0].update(timeout="1800s")),
        (
            "StatefulSet",
            lambda spec: spec["template"]["spec"]["containers"][0].update(livenesProbe={}),
        ),
        ("StatefulSet", lambda spec: spec.pop("selector")),
        ("NetworkPolicy", lambda spec: spec.update(policyTypes="Ingress")),
    ],
)
def test_a_mistake_is_found(kind, change):
    resource = json.loads(json.dumps(find(kind)))
    change(resource["spec"])
    with pytest.raises(jsonschema.ValidationError):
        check(resource, VERSIONS[-1])


def test_what_refers_to_another_resource_finds_it(pod):
    hosts, pool, route = find("StatefulSet")["spec"], find("InferencePool"), find("HTTPRoute")
    labels = hosts["template"]["metadata"]["labels"]
    values = yaml.safe_load((KUBERNETES / "llm-d-router.values.yaml").read_text())["router"]
    selectors = [
        hosts["selector"]["matchLabels"],
        find("Service")["spec"]["selector"],
        find("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        find("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        pool["spec"]["selector"]["matchLabels"],
        values["modelServers"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert hosts["serviceName"] == find("Service")["metadata"]["name"]
    assert pod["serviceAccountName"] == find("ServiceAccount")["metadata"]["name"]
    [backend] = route["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", pool["metadata"]["name"])
    assert f"{backend['group']}/v1" == pool["apiVersion"]
    # The chart names the endpoint picker after its release, and finds the pods by itself where it
    # does not make the pool.
    assert pool["spec"]["endpointPickerRef"]["name"] == "qlora-serving-epp"
    assert not values["inferencePool"]["create"]
    assert values["modelServers"]["targetPorts"] == pool["spec"]["targetPorts"]
    volumes = {volume["name"] for volume in pod["volumes"]} | {
        claim["metadata"]["name"] for claim in hosts["volumeClaimTemplates"]
    }
    used = {
        mount["name"]
        for item in pod["initContainers"] + pod["containers"]
        for mount in item["volumeMounts"]
    }
    assert used == volumes
    [generated] = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())[
        "configMapGenerator"
    ]
    assert generated["name"] in [
        volume.get("configMap", {}).get("name") for volume in pod["volumes"]
    ]
    assert all((KUBERNETES / file).is_file() for file in generated["files"])


def test_ports_paths_and_times_are_those_of_the_serving_configuration(config, pod):
    gateway, vllm, base_model = (container(pod, name) for name in ("gateway", "vllm", "base-model"))
    engine = f"http://127.0.0.1:{config.engine.port}"
    assert gateway["args"][-2:] == ["--engine-url", engine]
    for probe in ("startupProbe", "livenessProbe"):
        assert f"'{engine}/health'" in vllm[probe]["exec"]["command"][-1]
    assert (
        vllm["startupProbe"]["periodSeconds"] * vllm["startupProbe"]["failureThreshold"]
        >= config.engine.start_timeout_s
    )
    assert gateway["ports"] == [{"name": "http", "containerPort": config.gateway.port}]
    assert find("InferencePool")["spec"]["targetPorts"] == [{"number": config.gateway.port}]
    assert (
        find("HTTPRoute")["spec"]["rules"][0]["timeouts"]["request"]
        == f"{config.gateway.request_timeout_s}s"
    )
    graceful = config.gateway.drain_delay_s + config.gateway.drain_s + config.engine.stop_timeout_s
    assert pod["terminationGracePeriodSeconds"] > graceful
    options = base_model["args"][base_model["args"].index("--engine-config") + 1]
    assert vllm["command"] == ["vllm", "serve", "--config", options]
    assert vllm["resources"]["limits"]["nvidia.com/gpu"] == str(config.engine.tensor_parallel_size)
    paths = [mount["mountPath"] for mount in gateway["volumeMounts"]]
    for path in (
        config.state_directory,
        config.gateway.api_keys.parent,
        config.trust.public_key.parent,
    ):
        assert str(path) in paths
    # The engine reads releases from the path that the gateway names.
    assert str(config.state_directory) in [mount["mountPath"] for mount in vllm["volumeMounts"]]


def test_the_engine_is_the_one_that_the_evaluation_ran_with(pod):
    vllm = container(pod, "vllm")
    version = vllm["image"].rpartition(":v")[2]
    assert f"\nvllm=={version} " in (ROOT / "requirements.txt").read_text()
    environment = {variable["name"]: variable.get("value") for variable in vllm["env"]}
    assert ENVIRONMENT.items() <= environment.items()
    assert "VLLM_SERVER_DEV_MODE" not in environment


def test_the_gateway_ends_before_its_engine(pod):
    """Kubernetes ends sidecars after the containers, so that answers under way find their
    engine."""
    assert container(pod, "vllm")["restartPolicy"] == "Always"
    assert container(pod, "vllm") in pod["initContainers"]
    assert [item["name"] for item in pod["containers"]] == ["gateway"]


def test_rights_are_least(pod):
    assert not pod["automountServiceAccountToken"]
    assert pod["securityContext"]["runAsNonRoot"]
    for item in pod["initContainers"] + pod["containers"]:
        assert not item["securityContext"]["allowPrivilegeEscalation"]
        assert item["securityContext"]["readOnlyRootFilesystem"]
        assert item["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    [rule] = find("NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [8080]
    assert rule["from"]


def test_the_endpoint_picker_reads_the_engines_metrics_through_the_gateway(config):
    picker = yaml.safe_load((KUBERNETES / "llm-d-router.values.yaml").read_text())["router"]["epp"][
        "pluginsConfig"
    ]
    [source] = [plugin for plugin in picker["plugins"] if plugin["type"] == "metrics-data-source"]
    assert source["parameters"] == {"scheme": "http", "path": "/engine/metrics"}
    assert config.gateway.engine_metrics
    known = {plugin["type"] for plugin in picker["plugins"]}
    assert {
        item["pluginRef"] for profile in picker["schedulingProfiles"] for item in profile["plugins"]
    } <= known


def test_the_engine_writes_into_directories_of_its_own(pod):
    vllm, others = (
        container(pod, "vllm"),
        [container(pod, name) for name in ("base-model", "gateway")],
    )
    written = {
        mount["name"]: mount["mountPath"]
        for mount in vllm["volumeMounts"]
        if not mount.get("readOnly")
    }
    shared = {mount["name"] for item in others for mount in item["volumeMounts"]}
    assert not written.keys() & shared
    places = {variable["name"]: variable.get("value") for variable in vllm["env"]}
    for name in ("HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert places[name].startswith(written["engine-cache"])
    assert written["engine-tmp"] == "/tmp"


def test_secrets_reach_the_container_that_needs_them_alone(pod):
    given = {
        item["name"]: {variable["name"] for variable in item["env"]}
        for item in pod["initContainers"] + pod["containers"]
    }
    assert [name for name, names in given.items() if "HF_TOKEN" in names] == ["base-model"]
    assert not [name for name in given["vllm"] if name.startswith("AWS_") or "TOKEN" in name]


def test_the_way_out_is_names_and_https_beyond_the_cluster_and_the_nodes_role():
    policy = find("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    names, https = policy["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert https["ports"] == [{"protocol": "TCP", "port": 443}]
    closed = [
        ipaddress.ip_network(block) for rule in https["to"] for block in rule["ipBlock"]["except"]
    ]
    for address in (
        "169.254.169.254",
        "10.0.0.1",
        "172.20.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "fd00:ec2::254",
        "fe80::1",
    ):
        assert any(
            ipaddress.ip_address(address) in block
            for block in closed
            if block.version == ipaddress.ip_address(address).version
        )


def test_images_are_taken_by_digest(pod):
    """No digest is known here: each must be put in, and no cluster takes what stands here."""
    pinned = {
        image["name"]: image
        for image in yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["images"]
    }
    used = {
        item["image"].partition("@")[0].rpartition(":")[0] or item["image"]
        for item in pod["initContainers"] + pod["containers"]
    }
    assert used == pinned.keys()
    for image in pinned.values():
        assert "newTag" not in image
        assert re.fullmatch("sha256:([0-9a-f]{64}|change-me)", image["digest"])
