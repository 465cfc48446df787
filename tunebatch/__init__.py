"""Which batching strategy serves the most requests on this machine inside an SLO, and why."""

__version__ = "0.1.0"
