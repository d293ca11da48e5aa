"""The command line `mbm`: one module per family of verbs."""
