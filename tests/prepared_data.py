"""Data in tests."""

from common import config

from dlm.attention.block import Block
from dlm.config.build import make


def prepared(tokenizer, *overrides, pattern=None, num_rows=64, seed=0):
    data = make(config(*overrides).data)
    data.prepare(tokenizer, (pattern or Block(16)).tail, num_rows, seed)
    return data
