"""docker/ and k8s/ without a container engine: they are well-formed, and all that they name exists in the code."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import typer
import yaml

from app.authorization import OPEN
from app.cli import build_app
from app.config import read_config
from app.serving import FINISH_SECONDS
from app.settings import Settings
from tests.app.served import new_store, publish_generation, serving

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
KUSTOMIZATION = yaml.safe_load((ROOT / "k8s" / "kustomization.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for name in KUSTOMIZATION["resources"]
    for manifest in yaml.safe_load_all((ROOT / "k8s" / name).read_text())
]
PORT = Settings().port
UID = 10001


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in MANIFESTS if manifest["kind"] == kind]


def name_of(manifest: dict[str, Any]) -> str:
    name: str = manifest["metadata"]["name"]
    return name


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The pods that manifests make: name of the workload and the pod's spec."""
    for manifest in MANIFESTS:
        spec = manifest.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template is not None:
            yield name_of(manifest), template["spec"]


PODS = dict(pods())
CONTAINERS = {name: pod["containers"][0] for name, pod in PODS.items()}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line of hone that a deployment runs."""
    for line in re.findall(r"^CMD (\[.*\])$", DOCKERFILE.read_text(), re.MULTILINE):
        yield "Dockerfile", json.loads(line)
    for name, service in COMPOSE["services"].items():
        if service["image"].startswith("hone-"):
            yield f"compose {name}", service["command"]
    for name, container in CONTAINERS.items():
        yield f"k8s {name}", container["args"]
    for path in (DOCKERFILE, ROOT / "docker" / "compose.yaml", *(ROOT / "k8s").glob("*.yaml")):
        for spoken in re.findall(r"^# .*(?:run --rm worker|-- hone) (.*)$", path.read_text(), re.MULTILINE):
            yield f"comment of {path.name}", spoken.split()


COMMANDS = list(commands())


@pytest.mark.parametrize(("where", "arguments"), COMMANDS, ids=[where for where, _ in COMMANDS])
def test_every_command_exists_with_its_flags(where: str, arguments: list[str]) -> None:
    command: Any = typer.main.get_command(build_app())
    name, rest = "hone", list(arguments)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        assert name in command.commands, f"{where}: hone has no command {name}"
        command = command.commands[name]
    command.make_context(name, rest)  # raises for an unknown flag or a missing argument


def test_commands_cover_both_images_and_every_workload() -> None:
    assert {name for name, _ in COMMANDS} >= {"Dockerfile", "compose api", "compose worker", "k8s hone-api"}
    assert len(PODS) == 4 and len(COMMANDS) >= 10


def test_the_dockerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_images_are_pinned_and_run_as_nobody_in_particular() -> None:
    text = DOCKERFILE.read_text()
    images = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    assert [target for _, target in images][-2:] == ["api", "worker"]
    stages = {target for _, target in images}
    assert all(image in stages or re.search(r":\d+\.\d+\.\d+", image) for image, _ in images)
    for _, _, stage in (text.partition(" AS api"), text.partition(" AS worker")):
        assert f"USER {UID}:{UID}" in stage and "HEALTHCHECK" in stage and "--constraint constraints.txt" in stage
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named, wanted in re.findall(r'"hone\[([\w,]+)\]==([^"]+)"', text):
        assert wanted == version and set(named.split(",")) <= extras.keys()
    for service in COMPOSE["services"].values():
        assert re.search(r":\d+\.\d+", service["image"])


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
        for name in line.split()
    ]
    assert set(copied) == kept and all((ROOT / name).exists() for name in copied)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"benchmarks"} <= set(copied)


def test_settings_are_read_by_the_code() -> None:
    known = {f"HONE_{name}".upper() for name in Settings.model_fields} | {"DATABASE_URL"}
    text = DOCKERFILE.read_text() + json.dumps(COMPOSE["services"]) + json.dumps(MANIFESTS)
    named = set(re.findall(r"\bHONE_[A-Z_]+|DATABASE_URL", text)) - {"HONE_DATA", "HONE_DB_PASSWORD"}
    assert named and named <= known
    assert f"HONE_PORT={PORT}" in DOCKERFILE.read_text() and f"EXPOSE {PORT}" in DOCKERFILE.read_text()


@pytest.mark.parametrize("manifest", MANIFESTS, ids=[f"{m['kind']} {name_of(m)}" for m in MANIFESTS])
def test_manifests_are_valid(manifest: dict[str, Any]) -> None:
    """Raises for a kind that the schemas do not know, too, of which the command line only warns."""
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_kustomization_names_every_file_and_image() -> None:
    assert {path.name for path in (ROOT / "k8s").iterdir()} == {"kustomization.yaml", *KUSTOMIZATION["resources"]}
    assert {image["name"] for image in KUSTOMIZATION["images"]} == {c["image"] for c in CONTAINERS.values()}
    tags = {f"{image['name']}:{image['newTag']}" for image in KUSTOMIZATION["images"]}
    built = {s["image"] for s in COMPOSE["services"].values() if s["image"].startswith("hone-")}
    assert tags == built


def test_ports_and_probes_lead_to_routes(tmp_path: Path) -> None:
    container = CONTAINERS["hone-api"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": PORT} and str(PORT) in container["args"]
    (service,), (policy,) = of_kind("Service"), [p for p in of_kind("NetworkPolicy") if name_of(p) == "hone-api"]
    assert service["spec"]["ports"][0]["targetPort"] in ports
    assert policy["spec"]["ingress"][0]["ports"][0]["port"] in ports
    assert f"127.0.0.1:{PORT}:{PORT}" in COMPOSE["services"]["api"]["ports"]
    paths = {probe: container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")}
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    checked = re.findall(rf"http://127\.0\.0\.1:{PORT}(/\w+)'", DOCKERFILE.read_text())
    scraped = of_kind("Deployment")[1]["spec"]["template"]["metadata"]["annotations"]
    assert scraped["prometheus.io/port"] == str(PORT)
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    with serving(store) as server:
        for path in {*paths.values(), *checked, scraped["prometheus.io/path"]}:
            assert path in OPEN and server.client.get(path).status_code == 200, path


def test_the_pods_reach_a_database_in_their_namespace() -> None:
    (secret,) = of_kind("Secret")
    url = urlsplit(secret["stringData"]["DATABASE_URL"])
    assert url.hostname is not None and "." not in url.hostname, "a name of the namespace, where all ingress is denied"
    policies = {name_of(policy): policy["spec"] for policy in of_kind("NetworkPolicy")}
    port = {"protocol": "TCP", "port": url.port}
    assert policies["hone-database"]["ingress"] == [{"from": [{"podSelector": {}}], "ports": [port]}]
    assert policies["hone-database"]["podSelector"] == {}, "whatever labels its pods have"
    assert port in policies["hone-all"]["egress"][0]["ports"]


def test_a_volume_that_a_training_filled_is_not_indexed_first() -> None:
    """The head of compose.yaml names two ways, and only the one without a training begins with `index`."""
    head = (ROOT / "docker" / "compose.yaml").read_text().partition("\nname:")[0]
    serving, training = head.split("# Or train")
    assert "worker index /data" in serving and "index /data" not in training and "--profile train up" in training


def test_the_server_drains_before_it_is_killed() -> None:
    for grace, arguments in (
        (PODS["hone-api"]["terminationGracePeriodSeconds"], CONTAINERS["hone-api"]["args"]),
        (int(COMPOSE["services"]["api"]["stop_grace_period"].removesuffix("s")), COMPOSE["services"]["api"]["command"]),
    ):
        drain = float(arguments[arguments.index("--drain-seconds") + 1])
        assert drain >= 2 * CONTAINERS["hone-api"]["readinessProbe"]["periodSeconds"] and grace > drain + FINISH_SECONDS


def test_only_the_api_has_replicas_and_it_may_not_write() -> None:
    deployments = {name_of(manifest): manifest["spec"] for manifest in of_kind("Deployment")}
    assert deployments["hone-api"]["replicas"] > 1
    assert (deployments["hone-refresher"]["replicas"], deployments["hone-refresher"]["strategy"]) == (
        1,
        {"type": "Recreate"},
    )
    for name, container in CONTAINERS.items():
        store = next(mount for mount in container["volumeMounts"] if mount["mountPath"] == "/store")
        assert store.get("readOnly", False) == (container["image"] == "hone-api"), name
    assert "store:/store:ro" in COMPOSE["services"]["api"]["volumes"]
    (budget,) = of_kind("PodDisruptionBudget")
    assert budget["spec"]["minAvailable"] < deployments["hone-api"]["replicas"]


def test_pods_hold_no_rights_that_they_do_not_need() -> None:
    for name, pod in PODS.items():
        context, container = pod["securityContext"], pod["containers"][0]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, UID), name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert pod["automountServiceAccountToken"] is False and "limits" in container["resources"], name
        assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"]), name


def test_references_between_manifests_resolve() -> None:
    names = {(manifest["kind"], name_of(manifest)) for manifest in MANIFESTS}
    for name, pod in PODS.items():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes.keys(), name
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
        for source in pod["containers"][0].get("envFrom", ()):
            assert ("Secret", source["secretRef"]["name"]) in names
    labels = {
        manifest["spec"]
        .get("jobTemplate", {})
        .get("spec", manifest["spec"])["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
        for manifest in MANIFESTS
        if name_of(manifest) in PODS and manifest["kind"] in ("Deployment", "Job", "CronJob")
    }
    selected = re.findall(r"app\.kubernetes\.io/component\": \"(\w+)\"", json.dumps(MANIFESTS))
    assert set(selected) == labels


def test_the_run_of_the_configmap_is_one_that_hone_reads(tmp_path: Path) -> None:
    (config,) = of_kind("ConfigMap")
    path = tmp_path / "run.toml"
    path.write_text(config["data"]["run.toml"])
    assert read_config(path).data.path == "/data"
    mounted = {mount["mountPath"]: mount for mount in CONTAINERS["hone-trainer"]["volumeMounts"]}
    assert {"/data", "/etc/hone", "/store"} <= mounted.keys()
    assert "/etc/hone/run.toml" in CONTAINERS["hone-trainer"]["args"]


def test_what_computes_gets_a_gpu_where_one_is_asked_for() -> None:
    wishes = yaml.safe_load((ROOT / "docker" / "compose.gpu.yaml").read_text())["services"]
    of_gpu = {name for name, service in COMPOSE["services"].items() if service["image"].startswith("hone-worker")}
    assert wishes.keys() == of_gpu == {"worker", "trainer"}
    for wish in wishes.values():
        (device,) = wish["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]} and wish.keys() == {"deploy"}
        assert not any("deploy" in service for service in COMPOSE["services"].values()), "a machine without one"


def test_no_password_stands_in_a_file() -> None:
    (secret,) = of_kind("Secret")
    assert "REPLACE-ME" in secret["stringData"]["DATABASE_URL"]
    assert COMPOSE["services"]["database"]["environment"]["POSTGRES_PASSWORD"].startswith("${HONE_DB_PASSWORD:?")
