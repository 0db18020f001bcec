"""nnU-Net's batches in, a trained generator file out."""
