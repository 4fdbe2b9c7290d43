"""The commands, a file each. A module here is imported only when its command runs."""
