"""Models on this machine: finding, fetching and installing them."""
