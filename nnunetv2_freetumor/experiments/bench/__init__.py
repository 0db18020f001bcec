"""What synthesis costs beside plain nnU-Net."""
