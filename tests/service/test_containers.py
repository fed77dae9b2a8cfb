"""Files for containers: what they name is there, and what they ask of the database it answers."""

import re
import tomllib
from typing import Any

import pytest
import sqlalchemy as sa
import typer
import yaml
from tests.service.test_request_database import Desk
from tests.support.pages import ROOT

from ledgerbeam.batch.cli.app import app
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.service.commands import app as of_service
from ledgerbeam.service.web import health

FOLDER = ROOT / "examples" / "service"
CLUSTER: list[dict[str, Any]] = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
DEPLOYMENTS = {
    each["metadata"]["name"]: each["spec"] for each in CLUSTER if each["kind"] == "Deployment"
}
CONTAINERS = [
    container
    for spec in DEPLOYMENTS.values()
    for container in spec["template"]["spec"]["containers"]
]
OURS = {
    name: service for name, service in COMPOSE["services"].items() if "LEDGERBEAM" in str(service)
}
COMMENTS = "".join((FOLDER / name).read_text() for name in ("compose.yaml", "kubernetes.yaml"))


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the command line makes of the arguments; an error for those that it doesn't have."""
    verb, *rest = arguments
    for group in (typer.main.get_group(of_service), typer.main.get_group(app)):
        command: Any = group.commands.get(verb)
        if command is None:
            continue
        if hasattr(command, "commands"):
            verb, *rest = rest
            command = command.commands[verb]
        context = command.make_context(verb, rest)
        assert context.args == []
        found: dict[str, Any] = context.params
        return found
    raise AssertionError(f"no command {verb}")


def test_commands_have_the_flags_that_they_are_given() -> None:
    given = [container["args"] for container in CONTAINERS if "command" not in container]
    given += [service["command"] for service in OURS.values() if "entrypoint" not in service]
    assert {arguments[0] for arguments in given} == {"serve", "route", "work"}
    for arguments in given:
        assert parsed(arguments)
    loops = [container["args"][0] for container in CONTAINERS if "command" in container]
    loops += [service["command"][0] for service in OURS.values() if "entrypoint" in service]
    assert len(loops) == 2
    for loop in loops:
        (arguments,) = re.findall("ledgerbeam (.*?);", loop)
        parsed(arguments.split())


def test_commands_in_comments_are_there() -> None:
    made = re.findall(r"(keys create .*)", COMMENTS)
    assert len(made) == 2
    for arguments in made:
        assert parsed(arguments.split())["role"] == ["admin"]


def test_probes_ask_paths_that_there_are() -> None:
    paths = {route.path for route in health.router.routes}  # type: ignore[attr-defined]
    probes = [
        container[probe]["httpGet"]
        for container in CONTAINERS
        for probe in ("readinessProbe", "livenessProbe")
        if probe in container
    ]
    assert {probe["path"] for probe in probes} == {"/readyz", "/healthz"} & paths
    (front,) = (container for container in CONTAINERS if "ports" in container)
    port = parsed(front["args"])["port"]
    assert {probe["port"] for probe in probes} == {port, front["ports"][0]["containerPort"]}


def test_selectors_find_what_they_are_for() -> None:
    labels = {name: spec["template"]["metadata"]["labels"] for name, spec in DEPLOYMENTS.items()}
    for name, spec in DEPLOYMENTS.items():
        assert spec["selector"]["matchLabels"] == labels[name]
    by_kind = {each["kind"]: each["spec"] for each in CLUSTER}
    assert by_kind["Service"]["selector"] in labels.values()
    assert by_kind["ScaledObject"]["scaleTargetRef"]["name"] in DEPLOYMENTS


def test_nodes_are_given_longer_than_they_drain() -> None:
    node = DEPLOYMENTS["ledgerbeam-node"]["template"]["spec"]
    drain = parsed(node["containers"][0]["args"])["drain"]
    assert node["terminationGracePeriodSeconds"] > drain
    of_compose = COMPOSE["services"]["node"]
    assert (
        float(of_compose["stop_grace_period"].rstrip("s")) > parsed(of_compose["command"])["drain"]
    )


@pytest.mark.parametrize("registry_url", ["postgresql"], indirect=True)
def test_nodes_are_scaled_by_what_waits_and_what_runs(
    registry: Registry, engine: sa.Engine
) -> None:
    (trigger,) = next(each for each in CLUSTER if each["kind"] == "ScaledObject")["spec"][
        "triggers"
    ]
    desk = Desk(registry.database)
    desk.publish("close")

    def nodes() -> int:
        with engine.begin() as connection:
            return int(connection.scalars(sa.text(trigger["metadata"]["query"])).one())

    desk.ask()  # which no router has queued yet
    assert nodes() == 0
    for _ in range(3):
        desk.queue()
    assert nodes() == 3
    (taken,) = desk.take()
    assert nodes() == 3
    assert desk.finish(taken)
    assert nodes() == 2
    slots = parsed(DEPLOYMENTS["ledgerbeam-node"]["template"]["spec"]["containers"][0]["args"])[
        "slots"
    ]
    assert int(trigger["metadata"]["targetQueryValue"]) == slots
    variable = trigger["metadata"]["connectionFromEnv"]
    assert variable in {each["name"] for each in CONTAINERS[0]["env"]}


def test_the_image_has_what_the_project_calls_so() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dockerfile = (FOLDER / "Dockerfile").read_text()
    (extras,) = re.findall(r"'/src\[(.*?)\]'", dockerfile)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert "ledgerbeam" in project["scripts"]
    assert COMPOSE["x-ledgerbeam"]["build"]["dockerfile"] == "examples/service/Dockerfile"
