import files  # noqa: F401  before torch is imported
