"""Data and pre-trained checkpoints for the YAML files that are trained with."""

import pytest
import tiny_glue
from tiny_training import ROOT, scaled_down, train, write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Gives the folder with data of a modality, written when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = write_data(tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def pretrained_speech(tmp_path_factory, data):
    """Gives a tiny checkpoint of version 1 or 2 whose input is normalised or not, trained when first asked for."""
    made = {}

    def get(version, normalize=True):
        if (version, normalize) not in made:
            folder = tmp_path_factory.mktemp("pretrained")
            recipe = ROOT / "examples" / "speech" / f"base_librispeech{'_v2' if version == 2 else ''}.yaml"
            train(scaled_down(recipe, data("speech"), folder, task__normalize=normalize))
            made[version, normalize] = folder / "checkpoint_last.pt"
        return made[version, normalize]

    return get


@pytest.fixture(scope="session")
def pretrained_images(tmp_path_factory, data):
    """Gives a tiny checkpoint of the model that a recipe for images trains, trained when first asked for."""
    made = {}

    def get(recipe):
        if recipe not in made:
            folder = tmp_path_factory.mktemp("pretrained")
            train(scaled_down(ROOT / "examples" / "vision" / f"{recipe}.yaml", data("vision"), folder))
            made[recipe] = folder / "checkpoint_last.pt"
        return made[recipe]

    return get


@pytest.fixture(scope="session")
def pretrained_text(tmp_path_factory, data):
    """Gives a tiny checkpoint of version 1 or 2 on the text of GLUE's tasks, trained when first asked for."""
    made = {}

    def get(version):
        if version not in made:
            folder = tmp_path_factory.mktemp("pretrained")
            recipe = tiny_glue.V2 if version == 2 else tiny_glue.V1
            made[version] = tiny_glue.pretrain(data("glue") / "text", folder, recipe)
        return made[version]

    return get
