"""Data for the YAML files that are trained with."""

import pytest
from tiny_training import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Gives the folder with data of a modality, written when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = write_data(tmp_path_factory.mktemp(name), name)
        return made[name]

    return get
