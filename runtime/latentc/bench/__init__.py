"""Measuring a bundle on this machine: what a request costs, by stage, and what the machine could do at best."""
