"""Native helpers of poolmgr: what the standard library cannot ask the kernel. Imports nothing of `poolmgr`."""
