"""The table of cards, and how one is found in it."""

import pytest

from deepres.memory.gpus import GPUS, find_gpu


def test_names_are_unique_and_there_are_some_twenty():
    assert len({gpu.name for gpu in GPUS}) == len(GPUS) >= 20


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_a_card_has_plausible_figures_and_a_source(gpu):
    assert 4 * 2**30 <= gpu.memory_bytes <= 200 * 2**30
    assert 100 < gpu.bandwidth_gb_s < 10_000
    rates = [rate for rate in (gpu.fp32_tflops, gpu.tf32_tflops, gpu.bf16_tflops) if rate is not None]
    assert rates == sorted(rates)  # fewer bits are no slower
    assert gpu.source
    size = next((word for word in gpu.name.split() if word.endswith("GB")), None)
    assert size is None or int(size[:-2]) * 2**30 == gpu.memory_bytes


@pytest.mark.parametrize("name", ["RTX 3060 12GB", "rtx3060 12gb", " Rtx 3060  12GB "])
def test_case_and_spaces_do_not_matter(name):
    assert find_gpu(name).name == "RTX 3060 12GB"


@pytest.mark.parametrize(
    ("name", "full"), [("3060", "RTX 3060 12GB"), ("rtx 3060", "RTX 3060 12GB"), ("H100", "H100 80GB")]
)
def test_words_that_one_card_alone_has_will_do(name, full):
    assert find_gpu(name).name == full


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("RTX 306", "RTX 3060 12GB"),
        ("RTX", "RTX 2060"),
        ("A100", "A100 40GB, A100 80GB"),
        ("H10O", "H100 80GB"),
    ],
)
def test_an_unknown_card_is_refused_with_the_nearest_names(name, nearest):
    with pytest.raises(ValueError, match=f"unknown GPU '{name}'; nearest: .*{nearest}"):
        find_gpu(name)


def test_an_empty_name_is_refused_too():
    with pytest.raises(ValueError, match="unknown GPU ''; nearest: GTX 1080 Ti"):
        find_gpu("")
