"""Pre-trained weights from other libraries, for the nets of `deepres.models`."""

from deepres.pretrained.checks import PretrainedError
from deepres.pretrained.loading import load_pretrained

__all__ = ["PretrainedError", "load_pretrained"]
