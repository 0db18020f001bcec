"""A dataset in, the plans' `freetumor` section out: roles, measured tumors, clip window."""
