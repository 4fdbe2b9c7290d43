"""The second recipe: a small FLUX-architecture model that draws emoji from their names (`emoji-flux`)."""
