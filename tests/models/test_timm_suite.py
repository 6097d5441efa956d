"""timm's own model tests, from the source distribution of the installed timm, on the models of this package."""

import os
import re
import subprocess
import sys
import tarfile

import pytest
import timm
import torch

from random_checkpoints import ACCEPT_CACHED, FILES, VARIANTS, backbone_shapes, random_state_dict, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Folder with timm's tests/test_models.py, made to see this package."""
    folder = tmp_path_factory.mktemp("timm")
    requirement = f"timm=={timm.__version__}"
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", requirement]
    subprocess.run([*download, "-d", str(folder)], check=True)
    (archive,) = folder.glob("timm-*.tar.gz")
    with tarfile.open(archive) as tar:
        for name in ("test_models.py", "conftest.py"):
            source = tar.extractfile(f"timm-{timm.__version__}/tests/{name}").read().decode()
            if name == "test_models.py":
                source, imports = re.subn(
                    r"^import timm\n", "import timm\nimport segnext_timm\n" + ACCEPT_CACHED, source, flags=re.M
                )
                source, filters = re.subn(
                    r"^FEAT_INTER_FILTERS = \[", "FEAT_INTER_FILTERS = ['mscan',", source, flags=re.M
                )
                assert (imports, filters) == (1, 1)
            (folder / name).write_text(source)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A torch.hub cache with a random checkpoint under each published file name."""
    home = tmp_path_factory.mktemp("home")
    checkpoints = home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for i, variant in enumerate(VARIANTS):
        dialect = ("paper", "mmseg")[i % 2]
        state_dict = random_state_dict(backbone_shapes(variant, dialect, classifier=True))
        torch.save({"state_dict": state_dict}, checkpoints / FILES[variant])
        features = random_state_dict(backbone_shapes(variant))
        write(home / "x", features, "jittor").rename(checkpoints / f"mscan_{variant}.pkl")
        write(home / "x", features, "paddle zip").rename(checkpoints / f"mscan_{variant}_imagenet_pretrained.zip")
    return home


def test_timms_own_tests_pass_for_every_model(suite, cache):
    environment = {k: v for k, v in os.environ.items() if k != "GITHUB_ACTIONS"} | {"TORCH_HOME": str(cache)}
    options = ["-q", "-k", "mscan", "-rps", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    command = [sys.executable, "-m", "pytest", *options, "test_models.py"]
    result = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True)
    print(result.stdout.splitlines()[-1])
    assert result.returncode == 0, result.stdout[-20000:] + result.stderr[-2000:]
    assert "SKIPPED" not in result.stdout
    for test in ("forward", "backward", "default_cfgs", "forward_intermediates", "forward_fx", "load_pretrained"):
        for variant in VARIANTS:
            assert re.search(rf"PASSED test_models\.py::test_model_{test}\[.*mscan_{variant}", result.stdout)
