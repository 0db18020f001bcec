"""Names of synthetic cases: they say that a case is synthetic, and what it was made from."""

SYNTHETIC = "synthetic_"


def synthetic_name(source: str, number: int) -> str:
    """Return the name of a case that is made from a real one."""
    return f"{SYNTHETIC}{source}_{number:02d}"


def is_synthetic(case: str) -> bool:
    """Check whether a case is synthetic."""
    return case.startswith(SYNTHETIC)


def source_of(case: str) -> str:
    """Return the real case that a synthetic one was made from; a real case is its own source."""
    return case.removeprefix(SYNTHETIC).rpartition("_")[0] if is_synthetic(case) else case
