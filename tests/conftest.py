"""What every test shares: the same examples in each run, and no network."""

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so set before any test module is
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `hone` does: threads that spin slow each other

# No deadline: a busy machine is not a bug. Derandomised: a failure seen once is seen again.
settings.register_profile("hone", deadline=None, derandomize=True)
settings.load_profile("hone")
