"""How the generator that comes with the package is made."""
