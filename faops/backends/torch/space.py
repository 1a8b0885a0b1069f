"""The sizes of blocks that are tried. Nothing here shapes a kernel, so that winners outlive a longer list."""

BLOCKS_Q = (64, 128, 256, 512)  # rows of a tile of the blockwise kernels
BLOCKS_K = (128, 256, 512, 1024)  # and keys
BANDED_BLOCKS_Q = (64, 128, 256, 512, 1024)  # rows of one call to SDPA
GATHERED_KIB = (256, 1024, 4096)  # of keys that the decode kernel copies together
