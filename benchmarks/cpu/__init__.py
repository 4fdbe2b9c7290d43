"""latentc beside its peers on a CPU: `make bench`."""
