"""What is to be shown on a GPU, one command each; every module says whether it needs torch. README.md is the list."""
