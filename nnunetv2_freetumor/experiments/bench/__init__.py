"""The cost of synthesis compared with plain nnU-Net."""
