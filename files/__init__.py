import files.start  # first: before all that takes long to import

# isort: split
import files.errors  # noqa: F401
