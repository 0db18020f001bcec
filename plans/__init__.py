"""Bundled tumor priors, one JSON file each; installed as `nnunetv2_freetumor.plans`."""
