"""The package as users get it: built, installed into an empty environment, run from elsewhere."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {"rules", "io", "transforms", "batch", "pipelines", "service", "synthetic"}

pytestmark = pytest.mark.slow


def call(*command: str | Path, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from: to build writes to the tree, and others may do so at the same time."""
    left_out = shutil.ignore_patterns(".*", "*.egg-info", "build", "data", "mutants")
    folder = tmp_path_factory.mktemp("tree") / "ledgerbeam"
    return shutil.copytree(ROOT, folder, symlinks=True, ignore=left_out)


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--sdist", "--outdir", folder, tree, cwd=folder)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def test_sdist_holds_files_where_the_tree_has_links(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    prefix = f"{members[0].name.partition('/')[0]}/src/ledgerbeam"
    assert not [member.name for member in members if member.issym()]
    rooms = {m.name.split("/")[3] for m in members if m.name.startswith(prefix) and m.isfile()}
    assert rooms >= ROOMS | {"__init__.py", "py.typed"}
    assert f"{prefix}/io/datasets/profiles/zerodha-tradebook.toml" in {
        member.name for member in members
    }


def test_sdist_in_an_empty_environment_runs(sdist: Path, tmp_path: Path) -> None:
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    call(python, "-m", "pip", "install", "-q", "-c", constraints, sdist, cwd=tmp_path)
    folder = tmp_path / "work"
    folder.mkdir()
    command = environment / "bin" / "ledgerbeam"
    call(command, "generate", "trades", "--output=in", "--count=1000", "--files=1", cwd=folder)
    flags = ("--trades=in/*", "--trade-date=2026-11-20", "--json")
    module = (python, "-m", "ledgerbeam.pipelines.delivery_marking", *flags)
    shown = call(*module, "--output=one", cwd=folder)
    assert '"rows_out": 1000' in shown
    # Workers in processes of their own find the package, and are sent its options.
    several = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    shown = call(*module, "--output=two", *several, cwd=folder)
    assert '"rows_out": 1000' in shown
    call(command, "verify", "two/delivery-marking/2026-11-20", cwd=folder)
    listed = "from ledgerbeam.io.datasets.reading import profile_names; print(*profile_names())"
    assert "zerodha-tradebook" in call(python, "-c", listed, cwd=folder).split()
    refused = subprocess.run(
        [*map(str, module[:3]), "--trades=gs://b/*", *flags[1:], "--output=three"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "pip install 'ledgerbeam[gcp]'" in refused.stderr


def test_beam_stages_the_package_by_its_setup_file(tree: Path, tmp_path: Path) -> None:
    """What `--setup_file=./setup.py` sends to workers is the whole package."""
    from apache_beam.runners.portability.stager import Stager

    built = Stager._build_setup_package(str(tree / "setup.py"), str(tmp_path), None)
    with tarfile.open(built) as archive:
        names = archive.getnames()
    assert any(name.endswith("src/ledgerbeam/pipelines/delivery_marking.py") for name in names)
