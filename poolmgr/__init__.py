"""poolmgr: one daemon per GPU host that keeps pools of inference engines alive."""

__version__ = "0.1.0"
