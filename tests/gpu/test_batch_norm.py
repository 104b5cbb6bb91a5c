"""On a CUDA device: a replay of batch norm has the bits of the training pass, in each of the kernels that there are."""

import pytest
import torch

from deepres.models import BatchNorm2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a pixel": lambda x: x[:, :, :1, :1].contiguous(),
    "a pixel, channels_last": lambda x: x[:, :, :1, :1].contiguous(memory_format=torch.channels_last),
    "strided": lambda x: x[:, :, ::2, ::2],
    "another order": lambda x: x.permute(2, 1, 0, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_replay_has_the_bits_of_the_training_pass(layout, dtype):
    norm = BatchNorm2d(24).cuda()
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    torch.nn.init.normal_(norm.bias)
    x = LAYOUTS[layout](torch.randn(32, 24, 14, 14, device="cuda", dtype=dtype) * 3 + 1)
    memo, found = {}, []
    for _ in range(2):
        norm.zero_grad()
        leaf = x.detach().requires_grad_()
        y = norm(leaf, memo)
        gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        y.backward(torch.empty_like(y).copy_(gradient))
        found.append([y.detach(), leaf.grad, norm.weight.grad, norm.bias.grad])
        assert norm.num_batches_tracked == 1
    assert found[0][0].stride() == found[1][0].stride()
    assert all(map(torch.equal, *found))
