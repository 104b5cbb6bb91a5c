from typing import get_args

import pytest

from deepres.config import DataConfig
from deepres.data import find_data
from deepres.known_sets import KNOWN_SETS, SetName


def test_each_name_that_a_configuration_takes_is_known():
    assert tuple(KNOWN_SETS) == get_args(SetName)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_what_is_known_is_what_is_found(name):
    if name == "digits":
        pytest.importorskip("sklearn")
    known, info = KNOWN_SETS[name], find_data(DataConfig(name=name)).info
    assert (info.num_classes, info.image_size) == (known.num_classes, known.image_size)
