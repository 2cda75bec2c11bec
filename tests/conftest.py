"""Settings for all tests."""

from hypothesis import settings

# The same examples everywhere, and no test fails because a machine was busy.
settings.register_profile("atac", deadline=None, derandomize=True, database=None)
settings.load_profile("atac")
