"""What several files of tests share: a backbone and an adapter, trained on made-up speech."""

import pytest

from minihra.cli import main
from tests.tones import Bench, adapt, pretrain, write_corpus


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("corpus")
    made = Bench(folder, write_corpus(folder), folder / "backbone", folder / "adapter")
    assert main(pretrain(made.manifest, made.backbone, "--epochs", "60", "--valid", "split=test")) == 0
    assert main(adapt(made, made.adapter, "--steps", "150", "--state-size", "8")) == 0
    return made
